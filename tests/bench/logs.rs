//! Text as jobs print it, and secrets for it: the same in every run. And how fast such text went through something.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use integration_tests::random::Random;

use crate::{Limit, figure};

const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// What the lines of a Terraform run are made of.
const RESOURCES: [&str; 8] = [
    "aws_instance.web",
    "aws_s3_bucket.artifacts",
    "module.network.aws_subnet.private",
    "module.network.aws_route_table_association.private",
    "aws_iam_role_policy_attachment.lambda_basic_execution",
    "module.database.aws_db_instance.primary",
    "random_password.administrator",
    "kubernetes_namespace.monitoring",
];
const EVENTS: [&str; 6] = [
    "Refreshing state...",
    "Still creating... [00m30s elapsed]",
    "Creation complete after 12s",
    "Modifications complete after 3s",
    "Reading...",
    "will be updated in-place",
];
/// In how many lines there is one with a secret.
const SECRET_EVERY: u64 = 50;

/// Secrets of letters and digits. None is a part of another.
pub(crate) fn secrets(count: usize) -> Vec<String> {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut secret = |_| {
        let length = 12 + random.below(29);
        (0..length).map(|_| char::from(LETTERS[random.below(LETTERS.len() as u64) as usize])).collect()
    };
    (0..count).map(&mut secret).collect()
}

/// Lines with some of the secrets in them.
pub(crate) struct LogText<'a> {
    secrets: &'a [String],
    random: Random,
}

impl<'a> LogText<'a> {
    pub(crate) fn new(secrets: &'a [String]) -> Self {
        Self { secrets, random: Random(0x9e37_79b9_7f4a_7c15) }
    }

    /// As many bytes, the last line cut off.
    pub(crate) fn take(mut self, size: usize) -> Vec<u8> {
        let mut text = String::with_capacity(size + 1024);
        while text.len() < size {
            self.line(&mut text);
        }
        text.truncate(size);
        text.into_bytes()
    }

    fn line(&mut self, text: &mut String) {
        let random = &mut self.random;
        let mut pick = |from: &[&'static str]| from[random.below(from.len() as u64) as usize];
        let (resource, event) = (pick(&RESOURCES), pick(&EVENTS));
        let (id, minute, second) = (random.below(1 << 32), random.below(60), random.below(60));
        // Writing to a string does not fail.
        let _ = write!(text, "2026-01-01T12:{minute:02}:{second:02}Z {resource}[\"{id:x}\"]: {event}");
        match random.below(SECRET_EVERY) {
            0 => {
                let secret = &self.secrets[random.below(self.secrets.len() as u64) as usize];
                let _ = write!(text, " password={secret} [id={id:08x}]");
            }
            1..10 => {
                let _ = write!(text, " [id={id:08x}] {{\"arn\": \"arn:aws:iam::123456789012:role/deploy-{id}\"}}");
            }
            _ => {}
        }
        text.push('\n');
    }
}

/// Says how fast a log was. The goal is in megabytes in a second.
pub(crate) fn rate(name: &str, text: &[u8], took: Duration, goal: Option<f64>) -> Result<()> {
    let lines = text.iter().filter(|&&byte| byte == b'\n').count() as f64;
    figure(name, text.len() as f64 / 1e6 / took.as_secs_f64(), "MB/s", goal.map(Limit::AtLeast))?;
    figure(&format!("{name}, in lines"), lines / 1e6 / took.as_secs_f64(), "million lines/s", None)
}
