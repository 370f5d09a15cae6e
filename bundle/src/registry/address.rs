//! Names and addresses: of repositories, of ECR's registries, and of what a registry sends a client to.

use std::fmt;
use std::str::FromStr;

/// Limit of a repository's name, from the distribution specification.
const MAX_NAME: usize = 255;
/// Limit of a tag, from the distribution specification.
const MAX_TAG: usize = 128;
/// Limit of an address. Upload sessions carry signed state in theirs; a few thousand characters are usual.
const MAX_URL: usize = 16 * 1024;

/// A repository in a registry: `HOST[:PORT]/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repository {
    /// In lower case, with brackets around an IPv6 address.
    host: String,
    port: Option<u16>,
    name: String,
}

/// A text that names no repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no repository of the form HOST[:PORT]/NAME: {reason}")]
pub(crate) struct ParseRepositoryError {
    text: String,
    reason: &'static str,
}

impl Repository {
    /// The name without the registry.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `HOST[:PORT]`.
    pub(crate) fn registry(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// The registry of ECR that it is in, if it is in one.
    pub(super) fn ecr(&self) -> Option<EcrRegistry> {
        if self.port.is_some_and(|port| port != 443) {
            return None;
        }
        EcrRegistry::of_host(&self.host)
    }

    /// The region of AWS that it is in, if it is in one.
    pub(crate) fn region(&self) -> Option<String> {
        self.ecr().map(|ecr| ecr.region)
    }

    /// The address of the registry.
    pub(super) fn base(&self, secure: bool) -> Url {
        let port = self.port.unwrap_or(if secure { 443 } else { 80 });
        Url { secure, host: self.host.clone(), port, target: "/".to_owned() }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry(), self.name)
    }
}

impl FromStr for Repository {
    type Err = ParseRepositoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| ParseRepositoryError { text: text.chars().take(400).collect(), reason };
        if text.contains("://") {
            return Err(refuse("leave out the scheme, such as https://"));
        }
        let (registry, name) = text.split_once('/').ok_or_else(|| refuse("there is no name after the host"))?;
        if name.contains('@') {
            return Err(refuse("leave out the digest"));
        }
        if name.contains(':') {
            return Err(refuse("leave out the tag, which is given by itself"));
        }
        let (host, port) = split_port(registry).ok_or_else(|| refuse("the port is not a number"))?;
        if !is_host(host) {
            return Err(refuse("the host is not a name or address"));
        }
        // What container tools would take for a folder of their default registry is no host here either.
        if port.is_none() && !host.contains(['.', ':']) && !host.eq_ignore_ascii_case("localhost") {
            return Err(refuse("it starts with a folder and not with a registry's host"));
        }
        if name.len() > MAX_NAME {
            return Err(refuse("the name has more than 255 characters"));
        }
        if !is_name(name) {
            return Err(refuse("the name may have lower-case letters, digits, and single . _ - / between them"));
        }
        Ok(Self { host: host.to_ascii_lowercase(), port, name: name.to_owned() })
    }
}

/// Whether `name` can be a repository's name.
pub(super) fn is_name(name: &str) -> bool {
    let word = |word: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        // Separators stand between letters or digits: one of . and _, two of _, or any number of -.
        let separators = word.split(plain).filter(|separator| !separator.is_empty());
        word.starts_with(plain)
            && word.ends_with(plain)
            && separators.into_iter().all(|separator| {
                matches!(separator, "." | "_" | "__") || separator.chars().all(|character| character == '-')
            })
    };
    name.split('/').all(word)
}

/// Whether `tag` can be a tag.
pub(super) fn is_tag(tag: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= MAX_TAG && tag.starts_with(plain) && tag.chars().all(|c| plain(c) || c == '.' || c == '-')
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        return address.strip_suffix(']').is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let label = |label: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && label.chars().all(plain) && !label.starts_with('-') && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

/// `HOST[:PORT]` in two. The colons inside brackets are not a port's.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let after_address = authority.rfind(']').unwrap_or(0);
    match authority[after_address..].find(':') {
        None => Some((authority, None)),
        Some(colon) => {
            let (host, port) = authority.split_at(after_address + colon);
            let digits = port[1..].bytes().all(|byte| byte.is_ascii_digit());
            let port = port[1..].parse().ok().filter(|&port| digits && port != 0)?;
            Some((host, Some(port)))
        }
    }
}

/// The registry that an account has in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EcrRegistry {
    pub(super) account: String,
    pub(super) region: String,
    /// Whether its cryptography has to be validated, and that of the API with it.
    pub(super) fips: bool,
}

impl EcrRegistry {
    /// `ACCOUNT.dkr.ecr[-fips].REGION.amazonaws.com[.cn]`, and the names of those that have IPv6 as well,
    /// `ACCOUNT.dkr-ecr[-fips].REGION.on.aws` and `….on.amazonwebservices.com.cn`. Any other host gets no credentials
    /// of AWS, however similar it looks.
    fn of_host(host: &str) -> Option<Self> {
        let (account, rest) = host.split_once('.')?;
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let services = [
            ("dkr.ecr.", false, ".amazonaws.com"),
            ("dkr.ecr-fips.", true, ".amazonaws.com"),
            ("dkr-ecr.", false, ".on.aws"),
            ("dkr-ecr-fips.", true, ".on.aws"),
            ("dkr.ecr.", false, ".amazonaws.com.cn"),
            ("dkr-ecr.", false, ".on.amazonwebservices.com.cn"),
        ];
        services.into_iter().find_map(|(prefix, fips, suffix)| {
            let region = rest.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            let is_region = region.contains('-') && region.bytes().all(plain);
            // A region has its own partition's domain and no other.
            let is_chinese = region.starts_with("cn-") == suffix.ends_with(".cn");
            (is_region && is_chinese).then(|| Self { account: account.to_owned(), region: region.to_owned(), fips })
        })
    }
}

/// An address over HTTP: what is needed of it here, and nothing that could hide credentials.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    secure: bool,
    host: String,
    port: u16,
    /// Path and query, starting with a slash.
    target: String,
}

impl Url {
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_URL {
            return Err("it is too long");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("it has characters that an address cannot have");
        }
        let (scheme, rest) = text.split_once("://").ok_or("it has no scheme")?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("its scheme is neither https nor http"),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err("it has a user name in it");
        }
        let (host, port) = split_port(authority).ok_or("its port is not a number")?;
        if !is_host(host) {
            return Err("its host is not a name or address");
        }
        let port = port.unwrap_or(if secure { 443 } else { 80 });
        let target = target.split('#').next().unwrap_or_default();
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { secure, host: host.to_ascii_lowercase(), port, target })
    }

    /// What a `Location` header means to a client that asked here.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn join(&self, location: &str) -> Result<Self, &'static str> {
        if location.is_empty() {
            return Err("it is empty");
        }
        let is_absolute = location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':'));
        if is_absolute {
            return Self::parse(location);
        }
        if location.starts_with("//") {
            return Self::parse(&format!("{}:{location}", self.scheme()));
        }
        let target = if location.starts_with('/') {
            location.to_owned()
        } else {
            let path = self.target.split('?').next().unwrap_or_default();
            let directory = if location.starts_with('?') { path } else { &path[..=path.rfind('/').unwrap_or(0)] };
            format!("{directory}{location}")
        };
        Self::parse(&format!("{}{target}", self.origin()))
    }

    /// The same registry, another path and query.
    pub(super) fn at(&self, target: &str) -> Self {
        Self { target: target.to_owned(), ..self.clone() }
    }

    /// The same address with one more parameter. The value is encoded, the name is a word of ours.
    pub(super) fn with_parameter(mut self, name: &str, value: &str) -> Self {
        let separator = if self.target.contains('?') { '&' } else { '?' };
        self.target.push(separator);
        self.target.push_str(name);
        self.target.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                self.target.push(char::from(byte));
            } else {
                self.target.push_str(&format!("%{byte:02X}"));
            }
        }
        self
    }

    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Whether credentials for one are meant for the other, too.
    pub(super) fn is_same_origin(&self, other: &Self) -> bool {
        (self.secure, &self.host, self.port) == (other.secure, &other.host, other.port)
    }

    /// Scheme, host and port: what of an address may be shown. Paths and queries of uploads carry signatures.
    pub(super) fn origin(&self) -> String {
        let usual = if self.secure { 443 } else { 80 };
        if self.port == usual {
            format!("{}://{}", self.scheme(), self.host)
        } else {
            format!("{}://{}:{}", self.scheme(), self.host, self.port)
        }
    }

    /// All of it.
    pub(super) fn full(&self) -> String {
        format!("{}{}", self.origin(), self.target)
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/…", self.origin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(text: &str) -> Repository {
        text.parse().unwrap()
    }

    #[test]
    fn repositories_have_a_host_and_a_name() {
        let plain = repository("registry.example.com/team/spacelift-launcher");
        assert_eq!((plain.registry().as_str(), plain.name()), ("registry.example.com", "team/spacelift-launcher"));
        assert_eq!(repository("127.0.0.1:5000/a").base(false).full(), "http://127.0.0.1:5000/");
        assert_eq!(repository("[::1]:5000/a").base(true).full(), "https://[::1]:5000/");
        assert_eq!(repository("localhost/a").to_string(), "localhost/a");
        assert_eq!(repository("Example.COM/a__b/c-d.e_f--g").to_string(), "example.com/a__b/c-d.e_f--g");
    }

    #[test]
    fn what_is_no_repository_is_refused_with_a_reason() {
        let cases = [
            ("https://example.com/a", "scheme"),
            ("example.com", "no name"),
            ("example.com/", "lower-case"),
            ("example.com/a:v1", "tag"),
            ("example.com/a@sha256:00", "digest"),
            ("library/a", "folder"),
            ("example.com:x/a", "port"),
            ("example.com:0/a", "port"),
            ("example.com:+5/a", "port"),
            ("example.com:70000/a", "port"),
            ("user@example.com/a", "host"),
            ("exa mple.com/a", "host"),
            ("[::1/a", "port"),
            ("[::x]/a", "host"),
            ("example.com/A", "lower-case"),
            ("example.com/a//b", "lower-case"),
            ("example.com/../a", "lower-case"),
            ("example.com/a...b", "lower-case"),
            ("example.com/a___b", "lower-case"),
            ("example.com/a?b", "lower-case"),
        ];
        for (text, says) in cases {
            let error = text.parse::<Repository>().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let long = format!("example.com/{}", "a".repeat(256));
        assert!(long.parse::<Repository>().is_err());
    }

    #[test]
    fn tags_are_words() {
        for tag in ["v1.2.3", "latest", "_a-b.c", &"a".repeat(128)] {
            assert!(is_tag(tag), "{tag}");
        }
        for tag in ["", ".a", "-a", "a/b", "a:b", "a b", "a?", &"a".repeat(129)] {
            assert!(!is_tag(tag), "{tag}");
        }
    }

    #[test]
    fn only_the_hosts_of_ecr_are_ecr() {
        let known = [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", false),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", true),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", false),
            ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1", false),
            ("123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "cn-north-1", false),
        ];
        for (host, region, fips) in known {
            let ecr = repository(&format!("{host}/a")).ecr().unwrap_or_else(|| panic!("{host}"));
            assert_eq!((ecr.account.as_str(), ecr.region.as_str(), ecr.fips), ("123456789012", region, fips));
        }
        let others = [
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.example.com",
            "123456789012.dkr.ecr.eu-west-1.example.amazonaws.com",
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn",
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "x.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:8443",
            "123456789012.dkr.ecr.amazonaws.com",
            "public.ecr.aws",
        ];
        for host in others {
            assert_eq!(repository(&format!("{host}/a")).ecr(), None, "{host}");
        }
    }

    #[test]
    fn locations_are_joined_as_browsers_do() {
        let base = Url::parse("https://example.com/v2/a/blobs/uploads/?mount=x").unwrap();
        let cases = [
            ("https://other.example.com/x?y=z#f", "https://other.example.com/x?y=z"),
            ("//other.example.com:444/x", "https://other.example.com:444/x"),
            ("/v2/b?state=1", "https://example.com/v2/b?state=1"),
            ("123?state=a:b", "https://example.com/v2/a/blobs/uploads/123?state=a:b"),
            ("?state=1", "https://example.com/v2/a/blobs/uploads/?state=1"),
            ("HTTPS://Example.com", "https://example.com/"),
            ("http://example.com:80?x", "http://example.com/?x"),
        ];
        for (location, expected) in cases {
            assert_eq!(base.join(location).unwrap().full(), expected, "{location}");
        }
        for location in
            ["", "ftp://example.com/", "https://user:secret@example.com/", "https://", "/a b", "javascript:x"]
        {
            assert!(base.join(location).is_err(), "{location}");
        }
    }

    #[test]
    fn origins_are_scheme_host_and_port() {
        let base = Url::parse("https://example.com/a").unwrap();
        for same in ["https://example.com:443/b", "https://EXAMPLE.com/c?d"] {
            assert!(base.is_same_origin(&Url::parse(same).unwrap()), "{same}");
        }
        for other in ["http://example.com/a", "https://example.com:444/a", "https://a.example.com/"] {
            assert!(!base.is_same_origin(&Url::parse(other).unwrap()), "{other}");
        }
        assert_eq!(format!("{base:?}"), "https://example.com/…", "signed paths are not shown");
    }

    #[test]
    fn parameters_are_encoded() {
        let url = Url::parse("https://example.com/a?b=c").unwrap().with_parameter("digest", "sha256:ab c&d");
        assert_eq!(url.full(), "https://example.com/a?b=c&digest=sha256%3Aab%20c%26d");
        let url = Url::parse("https://example.com/a").unwrap().with_parameter("from", "team/x");
        assert_eq!(url.full(), "https://example.com/a?from=team/x");
    }
}
