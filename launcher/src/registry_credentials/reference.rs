//! Names of images, after the grammar of the distribution project.

/// What names without a registry are in.
pub(super) const HUB: &str = "docker.io";
/// What the Docker Hub is called in other places.
pub(super) const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Bytes of registry and repository.
const MAXIMUM_NAME: usize = 255;
/// Bytes of a tag.
const MAXIMUM_TAG: usize = 128;

/// The name of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why it is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not the name of an image: {0}. Write REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:DIGEST")]
pub struct Invalid(&'static str);

impl Reference {
    /// Reads a name. Those without a registry are of the Docker Hub, those without tag and digest mean `latest`.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(Invalid("its digest is not sha256: with 64 lower-case hexadecimal digits"));
        }
        // The last colon, unless it is a port's.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(Invalid("its tag has characters that tags do not have, or too many"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest),
            _ => (HUB, name),
        };
        if name.len() > MAXIMUM_NAME || !repository.split('/').all(is_component) {
            return Err(Invalid(
                "its repository is empty, too long, or has other than lower-case letters, digits and separators",
            ));
        }
        if !registry.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte)) {
            return Err(Invalid("its registry is not a host"));
        }
        let is_hub = HUB_HOSTS.contains(&registry);
        let repository =
            if is_hub && !repository.contains('/') { format!("library/{repository}") } else { repository.to_owned() };
        Ok(Self {
            registry: if is_hub { HUB } else { registry }.to_owned(),
            repository,
            tag: tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned())),
            digest: digest.map(str::to_owned),
        })
    }

    /// `HOST[:PORT]`; `docker.io` for the Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one. An image with a digest never changes.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

/// Whether what is before the first slash is a host: `a/b` is a repository of the Docker Hub, `a.b/c` is not.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
}

fn is_component(component: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let at_ends = [bytes.first(), bytes.last()].iter().all(|byte| byte.is_some_and(|byte| is_alphanumeric(*byte)));
    // One dot, one or two underscores, any number of hyphens.
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    at_ends && separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAXIMUM_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || b".-".contains(&byte))
}

fn is_digest(digest: &str) -> bool {
    digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}
