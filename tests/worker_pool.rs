//! The CloudFormation templates and what they make: infrastructure and worker hosts.

use integration_tests::aws_emulator::{ACCOUNT, Emulator, python_tool};
use integration_tests::release::workspace;
use integration_tests::run::{finish, succeed};
use serde_json::Value;

mod infrastructure;
