"""AWS as far as tests need it: moto, corrected where it would let a mistake pass.

Usage: aws_emulator.py PORT

moto accepts what the services refuse (capabilities, constraints of parameters, user data of any size), skips resource
types that it does not know, and forgets a few properties. Each correction below names what the service does.

Environment:
  EMULATOR_REGISTRY       HOST:PORT that repositories and tokens of ECR lead to (default 127.0.0.1:5000)
  EMULATOR_ECR_PASSWORD   the password in those tokens (default "password")
  EMULATOR_STACK_LIMIT    how many stacks the account may have (default 2000)
"""

import base64
import datetime
import functools
import hashlib
import json
import os
import re
import sys

# Managed policies exist in every account; moto loads them when asked.
os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
# Buckets are addressed by path: the host is a number.
os.environ.setdefault("S3_IGNORE_SUBDOMAIN_BUCKETNAME", "true")

from moto.cloudformation import models as stacks
from moto.cloudformation import parsing, responses
from moto.cloudformation.exceptions import ValidationError
from moto.core.common_models import CloudFormationModel
from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends, launch_templates, security_groups, subnets
from moto.ecr import models as ecr
from moto.ecr.responses import ECRResponse
from moto.iam.models import Role, iam_backends
from moto.s3.models import FakeBucket, s3_backends
from moto.server import main
from moto.utilities.utils import get_partition

ACCOUNT = "123456789012"
# The network that the documented commands name, so that they run as they are printed.
DOCUMENTED_SUBNETS = ["subnet-44ca1b771ca7bcc1a", "subnet-6b61ec08772f47ba2"]
DOCUMENTED_GROUP = "sg-0d1e157a19ba2106f"
REGIONS = ["eu-west-1", "us-east-1", "us-gov-west-1", "cn-north-1"]
# The service's limit on user data, before base64.
USER_DATA_LIMIT = 16384


def around(owner, name):
    """Replaces a function by one that gets the original as its first argument."""

    def decorate(replacement):
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args, **kwargs):
            return replacement(original, *args, **kwargs)

        setattr(owner, name, call)
        return replacement

    return decorate


def around_class_method(owner, name):
    """The same for class methods: the class comes second."""

    def decorate(replacement):
        original = getattr(owner, name).__func__

        def call(cls, *args, **kwargs):
            return replacement(functools.partial(original, cls), *args, **kwargs)

        setattr(owner, name, classmethod(call))
        return replacement

    return decorate


# CloudFormation tells the quota of stacks, which moto knows nothing of.


def account_limits(_self):
    limit = int(os.environ.get("EMULATOR_STACK_LIMIT", "2000"))
    limits = {"StackLimit": limit, "StackOutputsLimit": 200, "ConcurrentResourcesLimit": 2500}
    return ActionResult({"AccountLimits": [{"Name": name, "Value": value} for name, value in limits.items()]})


responses.CloudFormationResponse.describe_account_limits = account_limits


# ECR: the digest of an image is the SHA-256 of its manifest, and repositories lead to a registry that exists.

REGISTRY = os.environ.get("EMULATOR_REGISTRY", "127.0.0.1:5000")
PASSWORD = os.environ.get("EMULATOR_ECR_PASSWORD", "password")


def image_digest(image):
    image._image_digest = "sha256:" + hashlib.sha256(image.image_manifest.encode()).hexdigest()


ecr.Image._create_digest = image_digest


@around(ecr.Repository, "__init__")
def repository(original, self, *args, **kwargs):
    original(self, *args, **kwargs)
    self.uri = f"{REGISTRY}/{self.name}"


def authorization_token(_self):
    token = base64.b64encode(f"AWS:{PASSWORD}".encode()).decode()
    expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=12)
    entry = {"authorizationToken": token, "expiresAt": expires, "proxyEndpoint": f"http://{REGISTRY}"}
    return ActionResult({"authorizationData": [entry]})


ECRResponse.get_authorization_token = authorization_token


@around_class_method(ecr.Repository, "create_from_cloudformation_json")
def create_repository(original, name, resource, account, region, **kwargs):
    properties = resource["Properties"]
    # moto keeps what it is given and shows it in the spelling of the API.
    for key in ["EncryptionConfiguration", "ImageScanningConfiguration"]:
        if key in properties:
            properties[key] = {k[0].lower() + k[1:]: v for k, v in properties[key].items()}
    made = original(name, resource, account, region, **kwargs)
    if text := properties.get("LifecyclePolicy", {}).get("LifecyclePolicyText"):
        ecr.ecr_backends[account][region].put_lifecycle_policy(account, name, text)
    return made


# CloudFormation.


def check_parameters(template, given, capabilities):
    declared = template.get("Parameters", {})
    unknown = [name for name in given if name not in declared]
    if unknown:
        raise ValidationError(message=f"Parameters: [{', '.join(unknown)}] do not exist in the template")
    missing = [name for name, rules in declared.items() if name not in given and "Default" not in rules]
    if missing:
        raise ValidationError(message=f"Parameters: [{', '.join(missing)}] must have values")
    for name, rules in declared.items():
        value = str(given.get(name, rules.get("Default")))
        fails = []
        if "AllowedPattern" in rules and not re.fullmatch(rules["AllowedPattern"], value):
            fails.append(f"must match pattern {rules['AllowedPattern']}")
        if "AllowedValues" in rules and value not in [scalar(allowed) for allowed in rules["AllowedValues"]]:
            fails.append("is not one of the allowed values")
        if "MinLength" in rules and len(value) < int(rules["MinLength"]):
            fails.append(f"must contain at least {rules['MinLength']} characters")
        if "MaxLength" in rules and len(value) > int(rules["MaxLength"]):
            fails.append(f"must contain at most {rules['MaxLength']} characters")
        if rules["Type"] == "Number":
            if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
                fails.append("must be a number")
            elif not float(rules.get("MinValue", "-inf")) <= float(value) <= float(rules.get("MaxValue", "inf")):
                fails.append("is out of range")
        if fails:
            raise ValidationError(message=f"Parameter {name} failed to satisfy constraint: it {fails[0]}")
    kinds = {resource["Type"] for resource in template["Resources"].values()}
    iam = [r.get("Properties", {}) for r in template["Resources"].values() if r["Type"].startswith("AWS::IAM::")]
    if iam:
        names = ("RoleName", "InstanceProfileName", "PolicyName", "UserName", "GroupName")
        named = any(name in properties for properties in iam for name in names)
        needed = "CAPABILITY_NAMED_IAM" if named else "CAPABILITY_IAM"
        if needed not in capabilities and "CAPABILITY_NAMED_IAM" not in capabilities:
            raise ValidationError(message=f"Requires capabilities : [{needed}]")
    unsupported = [kind for kind in kinds if kind not in parsing.get_model_map() and kind not in parsing.NULL_MODELS]
    if unsupported:
        raise ValidationError(message=f"the emulator does not know {', '.join(unsupported)}")


def scalar(value):
    """A YAML scalar as CloudFormation reads it: as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


CAPABILITIES = []


@around(responses.CloudFormationResponse, "create_change_set")
def remember_capabilities(original, self):
    CAPABILITIES[:] = self._get_param("Capabilities", []) or []
    IMPORTS[:] = [resource["LogicalResourceId"] for resource in self._get_param("ResourcesToImport", []) or []]
    return original(self)


@around(stacks.CloudFormationBackend, "create_change_set")
def create_change_set(original, self, *args, **kwargs):
    parameters = kwargs.get("parameters") or {}
    # moto hands out the parsed values of a stack where the former ones are asked for.
    for name, value in parameters.items():
        parameters[name] = ",".join(map(str, value)) if isinstance(value, list) else scalar(value)
    template = stacks.Stack.parse_template(kwargs["template"])
    check_parameters(template, parameters, CAPABILITIES)
    if kwargs.get("change_set_type") == "IMPORT":
        check_import(template)
    return original(self, *args, **kwargs)


def check_import(template):
    """An import makes nothing: what is in its template exists, stays when the stack goes, and is all that there is."""
    if "Outputs" in template:
        raise ValidationError(message="As part of the import operation, you cannot modify or add [Outputs]")
    for name, resource in template["Resources"].items():
        if "DeletionPolicy" not in resource:
            raise ValidationError(message=f"Resources [{name}] is missing DeletionPolicy attribute in template")
        if name not in IMPORTS:
            raise ValidationError(message=f"Resource [{name}] is not in the list of resources to import")


# Logical names of what the last change set imports, and whether an import is executed.
IMPORTS, IMPORTING = [], []


def existing(kind, name, account, region):
    """What there is of this type and name."""
    if kind == "AWS::S3::Bucket":
        return s3_backends[account][get_partition(region)].buckets.get(name)
    if kind == "AWS::S3::BucketPolicy":
        return BucketPolicy(name)
    if kind == "AWS::ECR::Repository":
        return ecr.ecr_backends[account][region].repositories.get(name)
    return None


@around(stacks.CloudFormationBackend, "execute_change_set")
def execute_change_set(original, self, change_set_name, stack_name=None):
    chosen = [c for c in self.change_sets.values() if change_set_name in (c.change_set_name, c.change_set_id)]
    IMPORTING[:] = [c for c in chosen if c.change_set_type == "IMPORT"]
    try:
        original(self, change_set_name, stack_name)
    finally:
        IMPORTING.clear()
    for change_set in self.change_sets.values():
        if change_set_name in (change_set.change_set_name, change_set.change_set_id):
            stack = self.stacks[change_set.stack_id]
            stack.template_dict, stack.parameters = change_set.template_dict, change_set.parameters
            stack.description = change_set.template_dict.get("Description")
            stack.output_map = stack._create_output_map()


@around(parsing, "clean_json")
def clean_json(original, value, resources):
    # A property or an element that is AWS::NoValue is left out.
    if isinstance(value, list):
        value = [element for element in value if not is_no_value(element, resources)]
    return original(value, resources)


def is_no_value(value, resources):
    while isinstance(value, dict) and "Fn::If" in value:
        condition, yes, no = value["Fn::If"]
        value = yes if resources.lazy_condition_map[condition] else no
    return value == {"Ref": "AWS::NoValue"}


@around(parsing, "parse_and_create_resource")
def create_resource(original, logical_id, resource, resources, account_id, region_name):
    if IMPORTING:
        made = take_over(logical_id, resource, resources, account_id, region_name)
        add_events(resources, account_id, region_name, logical_id, resource["Type"], made, "IMPORT")
        return made
    made = original(logical_id, resource, resources, account_id, region_name)
    if made is not None:
        add_events(resources, account_id, region_name, logical_id, resource["Type"], made, "CREATE")
    return made


def take_over(logical_id, resource, resources, account_id, region_name):
    properties = parsing.clean_json(resource["Properties"], resources)
    names = [properties[name] for name in ("BucketName", "Bucket", "RepositoryName") if name in properties]
    made = existing(resource["Type"], names[0], account_id, region_name) if names else None
    if made is None:
        raise ValidationError(message=f"{logical_id} cannot be imported: there is no {resource['Type']} {names}")
    made.type, made.logical_resource_id = resource["Type"], logical_id
    return made


@around(parsing, "parse_and_update_resource")
def update_resource(original, logical_id, resource, resources, account_id, region_name):
    condition = resource.get("Condition")
    if condition and not resources.lazy_condition_map[condition]:
        return resources[logical_id]
    # Types that moto cannot update stay what they are; None in their place would break every reference to them.
    made = original(logical_id, resource, resources, account_id, region_name) or resources[logical_id]
    if made is not None:
        add_events(resources, account_id, region_name, logical_id, resource["Type"], made, "UPDATE")
    return made


def add_events(resources, account, region, logical_id, kind, made, action):
    stack = stacks.cloudformation_backends[account][region].stacks.get(resources.stack_id)
    if stack is None:
        return
    for status in ["IN_PROGRESS", "COMPLETE"]:
        event = stacks.Event(
            stack_id=stack.stack_id,
            stack_name=stack.name,
            logical_resource_id=logical_id,
            physical_resource_id=made.physical_resource_id,
            resource_type=kind,
            resource_status=f"{action}_{status}",
            resource_status_reason=None,
            resource_properties=None,
        )
        stack.events.append(event)


@around(parsing.ResourceMap, "build_resource_diff")
def build_resource_diff(original, self, other_template, parameters=None):
    """What refers to something that changes, by any function, changes too."""
    actions = original(self, other_template, parameters)
    given, defaults = parameters or {}, other_template.get("Parameters", {})
    before = {name: scalar(value) for name, value in self.input_parameters.items()}
    old = lambda name: before.get(name, scalar(defaults[name].get("Default")))
    changed = {name for name in defaults if name in given and scalar(given[name]) != old(name)}
    changed |= set(actions["Add"]) | set(actions["Modify"])
    new = other_template["Resources"]
    while True:
        more = [n for n in new if n not in changed and n in self._resource_json_map and references(new[n]) & changed]
        if not more:
            return actions
        actions["Modify"].extend(more)
        changed.update(more)


def references(value):
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, inner in value.items():
        if key == "Ref":
            found.add(inner)
        elif key == "Fn::GetAtt":
            found.add(inner[0] if isinstance(inner, list) else inner.split(".")[0])
        elif key == "Fn::Sub":
            text = inner[0] if isinstance(inner, list) else inner
            found |= {name.split(".")[0] for name in re.findall(r"\$\{([A-Za-z0-9.]+)\}", text)}
        found |= references(inner)
    return found


# Types and properties that moto skips.


class BucketPolicy(CloudFormationModel):
    # The package decides whether CloudFormation finds the class.
    __module__ = "moto.s3.emulator"

    def __init__(self, bucket):
        self.physical_resource_id = bucket

    @staticmethod
    def cloudformation_name_type():
        return ""

    @staticmethod
    def cloudformation_type():
        return "AWS::S3::BucketPolicy"

    @classmethod
    def create_from_cloudformation_json(cls, name, resource, account, region, **_kwargs):
        properties = resource["Properties"]
        document = json.dumps(properties["PolicyDocument"], default=str).encode()
        s3_backends[account][get_partition(region)].put_bucket_policy(properties["Bucket"], document)
        return cls(properties["Bucket"])

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name
    ):
        return cls.create_from_cloudformation_json(new_resource_name, cloudformation_json, account_id, region_name)

    @classmethod
    def delete_from_cloudformation_json(cls, name, _resource, account, region):
        s3_backends[account][get_partition(region)].delete_bucket_policy(name)


class LogGroup(CloudFormationModel):
    __module__ = "moto.logs.emulator"

    def __init__(self, name):
        self.physical_resource_id = name

    @staticmethod
    def cloudformation_name_type():
        return "LogGroupName"

    @staticmethod
    def cloudformation_type():
        return "AWS::Logs::LogGroup"

    @classmethod
    def create_from_cloudformation_json(cls, name, resource, account, region, **_kwargs):
        from moto.logs.models import logs_backends

        backend = logs_backends[account][region]
        backend.create_log_group(name, {})
        if days := resource["Properties"].get("RetentionInDays"):
            backend.put_retention_policy(name, int(days))
        return cls(name)

    @classmethod
    def delete_from_cloudformation_json(cls, name, _resource, account, region):
        from moto.logs.models import logs_backends

        logs_backends[account][region].delete_log_group(name)


def set_bucket_properties(bucket, resource, account, region):
    properties, backend = resource.get("Properties", {}), s3_backends[account][get_partition(region)]
    if versioning := properties.get("VersioningConfiguration"):
        backend.put_bucket_versioning(bucket.name, versioning["Status"])
    if block := properties.get("PublicAccessBlockConfiguration"):
        backend.put_public_access_block(bucket.name, {key: scalar(value) for key, value in block.items()})
    if controls := properties.get("OwnershipControls"):
        backend.put_bucket_ownership_controls(bucket.name, controls["Rules"][0]["ObjectOwnership"])
    if lifecycle := properties.get("LifecycleConfiguration"):
        rules = [{("ID" if key == "Id" else key): value for key, value in rule.items()} for rule in lifecycle["Rules"]]
        backend.put_bucket_lifecycle(bucket.name, [{"Filter": None, **rule} for rule in rules])
    return bucket


@around(FakeBucket, "get_permission")
def bucket_permission(original, self, action, resource):
    """moto leaves out conditions, so a policy that denies plain HTTP would deny everything. This server stands for one
    with TLS: such statements never apply."""
    policy = self.policy
    if policy is not None:
        document = json.loads(policy)
        is_about_http = lambda statement: "aws:SecureTransport" in statement.get("Condition", {}).get("Bool", {})
        document["Statement"] = [s for s in document["Statement"] if not is_about_http(s)]
        self.policy = json.dumps(document).encode() if document["Statement"] else None
    try:
        return original(self, action, resource)
    finally:
        self.policy = policy


@around_class_method(FakeBucket, "create_from_cloudformation_json")
def create_bucket(original, name, resource, account, region, **kwargs):
    return set_bucket_properties(original(name, resource, account, region, **kwargs), resource, account, region)


@around_class_method(FakeBucket, "update_from_cloudformation_json")
def update_bucket(original, original_resource, new_resource_name, cloudformation_json, account_id, region_name):
    cloudformation_json["Properties"].setdefault("BucketName", original_resource.name)
    bucket = original(original_resource, new_resource_name, cloudformation_json, account_id, region_name)
    return set_bucket_properties(bucket, cloudformation_json, account_id, region_name)


def put_inline_policies(role, properties):
    for policy in properties.get("Policies", []):
        role.put_policy(policy["PolicyName"], json.dumps(policy["PolicyDocument"], default=str))


@around_class_method(Role, "create_from_cloudformation_json")
def create_role(original, name, resource, account, region, **kwargs):
    role = original(name, resource, account, region, **kwargs)
    put_inline_policies(role, resource["Properties"])
    for policy in resource["Properties"].get("ManagedPolicyArns", []):
        # It fails for a policy that does not exist, as the service does.
        iam_backends[account][get_partition(region)].attach_role_policy(policy, role.name)
    return role


@around_class_method(Role, "update_from_cloudformation_json")
def update_role(_original, original_resource, new_resource_name, cloudformation_json, account_id, region_name):
    properties = cloudformation_json["Properties"]
    for name in list(original_resource.policies):
        original_resource.delete_policy(name)
    put_inline_policies(original_resource, properties)
    original_resource.permissions_boundary_arn = properties.get("PermissionsBoundary", "")
    return original_resource


@around_class_method(Role, "delete_from_cloudformation_json")
def delete_role(original, name, resource, account, region):
    backend = iam_backends[account][get_partition(region)]
    for policy in list(backend.get_role(name).managed_policies):
        backend.detach_role_policy(policy, name)
    return original(name, resource, account, region)


@around(launch_templates.LaunchTemplate, "create_version")
def create_version(original, self, data, description):
    user_data = data.get("UserData") or ""
    encoded = user_data if isinstance(user_data, str) else user_data.as_bytes()
    if len(base64.b64decode(encoded)) > USER_DATA_LIMIT:
        raise ValidationError(message="User data is limited to 16384 bytes")
    return original(self, data, description)


# A network with the names that the documentation uses.


def with_fixed_identifier(module, name, identifier, make):
    original = getattr(module, name)
    setattr(module, name, lambda: identifier)
    try:
        make()
    finally:
        setattr(module, name, original)


def make_network(region):
    backend = ec2_backends[ACCOUNT][region]
    vpc = backend.create_vpc("10.11.0.0/16")
    for number, identifier in enumerate(DOCUMENTED_SUBNETS):
        zone = f"{region}{'ab'[number]}"
        make = lambda: backend.create_subnet(vpc.id, f"10.11.{number}.0/24", availability_zone=zone)
        with_fixed_identifier(subnets, "random_subnet_id", identifier, make)
    make = lambda: backend.create_security_group("workers", "worker pool", vpc_id=vpc.id)
    with_fixed_identifier(security_groups, "random_security_group_id", DOCUMENTED_GROUP, make)


parsing.get_model_list.cache_clear()
parsing.get_model_map.cache_clear()
parsing.get_name_type_map.cache_clear()

if __name__ == "__main__":
    for name in REGIONS:
        make_network(name)
    main(["--host", "127.0.0.1", "--port", sys.argv[1]])
