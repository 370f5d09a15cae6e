"""A plugin of the AWS CLI: every command goes to the endpoint in AWS_ENDPOINT_URL, unless it names another one. Those of
S3 go to the one in AWS_ENDPOINT_URL_S3, if that is set.

Newer versions read the variable themselves. With this, older ones run documented commands as they are printed, too.
"""

import os


def use_endpoint(parsed_args, **_kwargs):
    if parsed_args.endpoint_url:
        return
    names = ["AWS_ENDPOINT_URL_S3"] if parsed_args.command in ("s3", "s3api") else []
    values = [os.environ[name] for name in [*names, "AWS_ENDPOINT_URL"] if name in os.environ]
    parsed_args.endpoint_url = values[0]


def awscli_initialize(cli):
    # Before the CLI itself handles its global arguments.
    cli.register_first("top-level-args-parsed", use_endpoint)
