//! Where a release comes from: repository, commit, state of the work tree, and the date that stands for every clock.

use std::fmt;
use std::str::FromStr;

/// The last second that a tar header holds in octal (2242-03-16): later dates would need an extension.
const MAX_DATE: u64 = 0o77_777_777_777;
/// Longest repository address. Browsers and servers agree on some 2,000 characters; a label or an SBOM needs no more.
const MAX_URL: usize = 500;

/// The time of the commit. It is the only time that any output of a build carries, so the same commit gives the same
/// bytes whenever it is built.
///
/// Read from seconds since 1970, as in `SOURCE_DATE_EPOCH`; written as in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date(u64);

/// A string that is not a source date.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a source date: expected seconds since 1970, as `git log -1 --format=%ct` prints them")]
pub struct ParseDateError(String);

impl Date {
    /// The second in which `time` lies; before 1970, the first one.
    pub fn of(time: std::time::SystemTime) -> Self {
        Self(time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs().min(MAX_DATE))
    }

    /// Seconds since 1970.
    pub fn unix(self) -> u64 {
        self.0
    }
}

impl FromStr for Date {
    type Err = ParseDateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        let seconds = digits.then(|| text.parse().ok()).flatten();
        match seconds {
            Some(seconds) if seconds <= MAX_DATE => Ok(Self(seconds)),
            _ => Err(ParseDateError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_date(self.0 / 86_400);
        let second = self.0 % 86_400;
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
    }
}

/// Year, month and day of a number of days since 1970-01-01.
///
/// The year is taken to start in March, so that the leap day is its last: then every 400 years have the same 146,097
/// days, and the lengths of the months follow one line of arithmetic.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + next_year, month, day)
}

/// The commit that was built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// A full object name: 40 hexadecimal digits, or 64 in a SHA-256 repository.
    Known(String),
    /// The sources were not in a repository. Written `unknown`.
    Unknown,
}

/// A string that does not name a commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a commit: expected its full name of 40 lower-case hexadecimal digits, or `unknown`")]
pub struct ParseCommitError(String);

impl FromStr for Commit {
    type Err = ParseCommitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hexadecimal = text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        match text.len() {
            _ if text == "unknown" => Ok(Self::Unknown),
            40 | 64 if hexadecimal => Ok(Self::Known(text.to_owned())),
            _ => Err(ParseCommitError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(name) => f.write_str(name),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Whether the files that were built are those of the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tree {
    /// They are.
    Clean,
    /// They had local changes.
    Modified,
}

/// The address of the source repository: an `http` or `https` URL without credentials, query or fragment. It ends up in
/// public labels and documents, and other identifiers are made by appending to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

/// A string that cannot be the address of a source repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be the source repository's address: {0}; expected something like https://example.com/team/product")]
pub struct ParseUrlError(&'static str);

impl Url {
    /// The address as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An identifier below the address: `https://example.com/product` and `a/b` give `https://example.com/product/a/b`.
    pub fn join(&self, path: &str) -> String {
        format!("{}/{path}", self.0.trim_end_matches('/'))
    }
}

impl FromStr for Url {
    type Err = ParseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
            return Err(ParseUrlError("it does not start with https:// or http://"));
        };
        if text.len() > MAX_URL {
            return Err(ParseUrlError("it is longer than 500 characters"));
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte)) {
            return Err(ParseUrlError("it has a character that must be percent-encoded"));
        }
        if rest.contains(['?', '#']) {
            return Err(ParseUrlError("it has a query or a fragment"));
        }
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.contains('@') {
            return Err(ParseUrlError("it has a user name or password, which would be published with the release"));
        }
        if authority.is_empty() || authority.starts_with(':') {
            return Err(ParseUrlError("it has no host"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> String {
        text.parse::<Date>().unwrap().to_string()
    }

    #[test]
    fn dates_are_written_as_in_rfc_3339() {
        // Expected values from `date -u -d @SECONDS +%FT%TZ`.
        for (seconds, expected) in [
            ("0", "1970-01-01T00:00:00Z"),
            ("951782399", "2000-02-28T23:59:59Z"),
            ("951782400", "2000-02-29T00:00:00Z"),
            ("951868800", "2000-03-01T00:00:00Z"),
            ("1709164800", "2024-02-29T00:00:00Z"),
            ("1735689599", "2024-12-31T23:59:59Z"),
            ("4107542400", "2100-03-01T00:00:00Z"),
            ("8589934591", "2242-03-16T12:56:31Z"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn dates_beyond_a_tar_header_and_other_text_are_refused() {
        for text in ["", "-1", "+1", "1.5", " 1", "8589934592", "99999999999999999999", "2024-01-01"] {
            assert!(text.parse::<Date>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_commit_is_its_full_name() {
        let name = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(name.parse(), Ok(Commit::Known(name.to_owned())));
        assert_eq!("unknown".parse(), Ok(Commit::Unknown));
        for text in ["", "HEAD", &name[1..], &name.to_uppercase(), "Unknown"] {
            assert!(text.parse::<Commit>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn urls_with_credentials_or_surprises_are_refused() {
        for text in ["https://example.com", "http://[::1]:8080/x", "https://example.com/team/product.git/"] {
            assert_eq!(text.parse::<Url>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "ssh://git@example.com/x",
            "https://",
            "https:///x",
            "https://:80/",
            "https://user:secret@example.com/x",
            "https://token@example.com/x",
            "https://example.com/x?y",
            "https://example.com/x#y",
            "https://example.com/a b",
            "https://example.com/\n",
            "https://example.com/ä",
        ] {
            let refused = text.parse::<Url>().unwrap_err();
            assert!(!refused.to_string().contains("secret"), "{refused}");
        }
    }

    #[test]
    fn identifiers_are_made_below_the_address() {
        let url: Url = "https://example.com/x/".parse().unwrap();
        assert_eq!(url.join("build-types/dist/v1"), "https://example.com/x/build-types/dist/v1");
    }
}
