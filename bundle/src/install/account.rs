//! Whose credentials these are, and what is in that account under the names that an installation needs.

use aws_sdk_cloudformation::types::StackStatus;
use aws_sdk_s3::error::ProvideErrorMetadata as _;

use crate::aws::Connection;
use crate::exit::Usage;
use crate::failure::{Failure, Kind};

/// An AWS account, as the credentials have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Its twelve digits.
    pub(crate) id: String,
    /// Who is acting in it.
    pub(crate) arn: String,
    /// `aws`, `aws-us-gov` or `aws-cn`.
    pub(crate) partition: String,
}

impl Account {
    /// Asks AWS who the credentials belong to.
    ///
    /// # Errors
    /// They are missing, expired or wrong, or AWS cannot be reached.
    pub(crate) async fn identify(connection: &Connection) -> Result<Self, Failure> {
        let doing = "find out which AWS account this is";
        let answer = aws_sdk_sts::Client::new(&connection.config).get_caller_identity().send().await;
        let answer = answer.map_err(|error| Failure::of(doing, "sts:GetCallerIdentity", &error))?;
        let (Some(id), Some(arn)) = (answer.account(), answer.arn()) else {
            let why =
                "the answer names none; does --endpoint-url lead to AWS, or to something that speaks its protocol?";
            return Err(Failure::new(doing, Kind::Wrong, why));
        };
        let partition = arn.split(':').nth(1).unwrap_or("aws").to_owned();
        Ok(Self { id: id.to_owned(), arn: arn.to_owned(), partition })
    }

    /// # Errors
    /// It is not the account that the configuration names, or the region is of another partition.
    pub(crate) fn check(&self, expected: Option<&str>, region: &str) -> Result<(), Usage> {
        if let Some(expected) = expected.filter(|expected| *expected != self.id) {
            return Err(Usage(format!(
                "the credentials are of account {} ({}), and the configuration is for account {expected}: use other \
                 credentials, or correct `aws_account_id`",
                self.id, self.arn
            )));
        }
        let of_region = partition_of(region);
        if of_region != self.partition && matches!(self.partition.as_str(), "aws" | "aws-us-gov" | "aws-cn") {
            return Err(Usage(format!(
                "the region {region} is in the partition {of_region}, and the credentials are of {}: correct `aws_region`",
                self.partition
            )));
        }
        Ok(())
    }

    /// The name of the downloads bucket unless the configuration has another.
    pub(crate) fn default_bucket(&self) -> String {
        format!("{}-spacelift-infra-spacelift-downloads", self.id)
    }
}

fn partition_of(region: &str) -> &'static str {
    match region.split('-').collect::<Vec<_>>().as_slice() {
        ["cn", ..] => "aws-cn",
        ["us", "gov", ..] => "aws-us-gov",
        ["us", "iso", ..] => "aws-iso",
        ["us", "isob", ..] => "aws-iso-b",
        _ => "aws",
    }
}

/// Whether the account has the bucket.
///
/// # Errors
/// It belongs to someone else, or is in another region.
pub(crate) async fn has_bucket(connection: &Connection, account: &Account, bucket: &str) -> Result<bool, Failure> {
    let doing = format!("use the bucket {bucket}");
    let region = &connection.region;
    let other_region = |there: &str| {
        let why = format!(
            "it is in the region {there}, and the installation in {region}; correct `aws_region`, or set \
             `downloads_bucket_name` to a name that is free"
        );
        Failure::new(doing.clone(), Kind::Wrong, why)
    };
    let answer = connection.s3().head_bucket().bucket(bucket).expected_bucket_owner(&account.id).send().await;
    match answer {
        Ok(found) => match found.bucket_region() {
            Some(there) if there != region => Err(other_region(there)),
            _ => Ok(true),
        },
        Err(error) => {
            let failed = Failure::of(doing.clone(), "s3:ListBucket", &error);
            let there = error.raw_response().and_then(|response| response.headers().get("x-amz-bucket-region"));
            match (failed.status, there) {
                (Some(404), _) => Ok(false),
                (_, Some(there)) if there != region => Err(other_region(there)),
                // S3 says nothing more about what belongs to others.
                (Some(403), _) => {
                    let why = format!(
                        "it belongs to another account than {}, or the credentials may not look at it; set \
                         `downloads_bucket_name` to a name that is free, or allow s3:ListBucket",
                        account.id
                    );
                    Err(Failure::new(doing.clone(), Kind::Denied, why))
                }
                _ => Err(failed),
            }
        }
    }
}

/// Whether the bucket has a policy.
///
/// # Errors
/// S3 refuses.
pub(crate) async fn has_policy(connection: &Connection, bucket: &str) -> Result<bool, Failure> {
    match connection.s3().get_bucket_policy().bucket(bucket).send().await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some("NoSuchBucketPolicy") => Ok(false),
        Err(error) => Err(Failure::of(format!("read the policy of the bucket {bucket}"), "s3:GetBucketPolicy", &error)),
    }
}

/// Whether the account has the image repository in this region.
///
/// # Errors
/// ECR refuses.
pub(crate) async fn has_repository(connection: &Connection, name: &str) -> Result<bool, Failure> {
    let client = aws_sdk_ecr::Client::new(&connection.config);
    match client.describe_repositories().repository_names(name).send().await {
        Ok(found) => Ok(!found.repositories().is_empty()),
        Err(error) if error.code() == Some("RepositoryNotFoundException") => Ok(false),
        Err(error) => {
            Err(Failure::of(format!("look at the image repository {name}"), "ecr:DescribeRepositories", &error))
        }
    }
}

/// Whether the account may have `needed` more stacks in this region. A note if AWS does not say.
///
/// # Errors
/// It may not.
pub(crate) async fn check_stack_quota(connection: &Connection, needed: usize) -> Result<Option<String>, Failure> {
    let client = aws_sdk_cloudformation::Client::new(&connection.config);
    let not_checked = |failure: &Failure| Some(format!("the quota of stacks is not checked: {failure}"));
    let doing = "find out how many stacks this account may have";
    let limits = match client.describe_account_limits().send().await {
        Ok(limits) => limits,
        Err(error) => return Ok(not_checked(&Failure::of(doing, "cloudformation:DescribeAccountLimits", &error))),
    };
    let limit = limits.account_limits().iter().find(|limit| limit.name() == Some("StackLimit"));
    let Some(limit) = limit.and_then(|limit| usize::try_from(limit.value()?).ok()) else {
        return Ok(Some("the quota of stacks is not checked: AWS does not tell it".to_owned()));
    };
    let mut listed = client.list_stacks().into_paginator().items().send();
    let mut present = 0;
    while let Some(stack) = listed.next().await {
        match stack {
            // Stacks are listed for 90 days after they are gone.
            Ok(stack) if stack.stack_status() == Some(&StackStatus::DeleteComplete) => {}
            Ok(_) => present += 1,
            Err(error) => return Ok(not_checked(&Failure::of(doing, "cloudformation:ListStacks", &error))),
        }
    }
    if present + needed > limit {
        let why = format!(
            "the account has {present} of {limit} stacks in {}, and the installation needs {needed} more: delete some, or \
             ask for more in the console (Service Quotas, AWS CloudFormation, Stack count)",
            connection.region
        );
        return Err(Failure::new("make the stacks", Kind::Denied, why));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{Account, partition_of};

    #[test]
    fn the_account_and_the_partition_must_be_the_right_ones() {
        let arn = "arn:aws-us-gov:iam::123456789012:user/x".to_owned();
        let account = Account { id: "123456789012".into(), arn, partition: "aws-us-gov".into() };
        assert!(account.check(None, "us-gov-west-1").is_ok());
        assert!(account.check(Some("123456789012"), "us-gov-east-1").is_ok());
        let wrong = account.check(None, "eu-west-1").unwrap_err().0;
        assert!(wrong.contains("partition aws, and the credentials are of aws-us-gov"), "{wrong}");
        let wrong = account.check(Some("210987654321"), "us-gov-west-1").unwrap_err().0;
        assert!(wrong.contains("account 123456789012") && wrong.contains("for account 210987654321"), "{wrong}");
        assert_eq!(account.default_bucket(), "123456789012-spacelift-infra-spacelift-downloads");
        assert_eq!((partition_of("cn-north-1"), partition_of("eu-west-1")), ("aws-cn", "aws"));
    }
}
