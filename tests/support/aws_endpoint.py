"""A plugin of the AWS CLI: every command goes to the endpoint in AWS_ENDPOINT_URL, unless it names another one.

Newer versions read the variable themselves. With this, older ones run documented commands as they are printed, too.
"""

import os


def use_endpoint(parsed_args, **_kwargs):
    if not parsed_args.endpoint_url:
        parsed_args.endpoint_url = os.environ["AWS_ENDPOINT_URL"]


def awscli_initialize(cli):
    # Before the CLI itself handles its global arguments.
    cli.register_first("top-level-args-parsed", use_endpoint)
