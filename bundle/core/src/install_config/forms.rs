//! The forms that names of AWS have.

/// `eu-west-1`, `us-gov-west-1`, `cn-north-1`. Whether it exists is for AWS to say.
pub fn is_region(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let Some((number, words)) = parts.split_last() else { return false };
    let is_word = |word: &&str| (2..=12).contains(&word.len()) && word.chars().all(|c| c.is_ascii_lowercase());
    (2..=4).contains(&words.len()) && words.iter().all(is_word) && matches!(number.as_bytes(), [b'0'..=b'9'])
}

/// The number of an account.
pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.chars().all(|c| c.is_ascii_digit())
}

/// A bucket that all clients reach: the strict rules of S3.
pub(super) fn is_bucket(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    (3..=63).contains(&text.len())
        && text.chars().all(is_inner)
        && is_end(text.chars().next())
        && is_end(text.chars().last())
        && !text.contains("..")
}

/// A repository of ECR.
pub(super) fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .split(['.', '_', '-'])
                .all(|run| !run.is_empty() && run.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()))
    };
    (2..=256).contains(&text.len()) && text.split('/').all(is_part)
}

/// A stack of CloudFormation.
pub(super) fn is_stack(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// What every service takes in a tag.
pub(super) fn is_tag_char(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c)
}

#[cfg(test)]
mod tests {
    use super::{is_bucket, is_region, is_repository};

    #[test]
    fn forms() {
        for region in ["eu-west-1", "us-gov-west-1", "cn-north-1", "ap-southeast-4"] {
            assert!(is_region(region), "{region}");
        }
        for region in ["eu-west-1a", "eu-west", "", "EU-west-1", "eu_west_1", "eu-west-1.evil.example"] {
            assert!(!is_region(region), "{region}");
        }
        assert!(is_bucket("123456789012-spacelift-infra-spacelift-downloads"));
        assert!(!is_bucket("a/b") && !is_bucket("ab") && !is_bucket("-abc") && !is_bucket("a..b"));
        assert!(is_repository("spacelift-launcher") && is_repository("team/launcher_x.y"));
        assert!(!is_repository("a//b") && !is_repository("a--b") && !is_repository("a:b"));
    }
}
