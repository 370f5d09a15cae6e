//! The CloudFormation templates and what they make: infrastructure and worker hosts.

mod infrastructure;
mod pool;

mod compatibility;
mod hosts;
mod refusals;
mod template;
