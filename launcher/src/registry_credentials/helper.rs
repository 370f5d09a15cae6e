//! Docker's credential helpers: programs that are asked on standard input and answer in JSON.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Credentials, Error};

/// How long a helper may take. Some of them ask a cloud.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of an answer. Tokens of registries have up to some thousand.
const MAXIMUM_ANSWER: u64 = 256 * 1024;
/// What helpers print when they have nothing for a registry.
const NOT_FOUND: &str = "credentials not found";
/// The user that stands for a token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for a registry. `directory` is Docker's configuration directory.
pub(super) async fn get(
    name: &str,
    server: &str,
    directory: &Path,
    helpers: Option<&Path>,
) -> Result<Option<Credentials>, Error> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| Error::Helper { program: program.clone(), reason };
    // It becomes part of a program's name, which is looked up on the PATH.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) {
        return Err(failed("has a name that no helper has; look at `credsStore` and `credHelpers`".to_owned()));
    }
    let path = helpers.map_or_else(|| PathBuf::from(&program), |helpers| helpers.join(&program));
    let asked = timeout(LIMIT, ask(&path, server, directory)).await;
    let answer = match asked {
        Err(_) => return Err(failed(format!("did not answer within {} seconds", LIMIT.as_secs()))),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(failed(
                "is not installed. Install it where the launcher's PATH leads to, or log in without a credential store"
                    .to_owned(),
            ));
        }
        Ok(answer) => answer.map_err(|error| failed(format!("cannot be asked: {error}")))?,
    };
    // Neither output is repeated: it may hold what it should not.
    let Some(output) = answer.succeeded else {
        return if answer.says_not_found {
            Ok(None)
        } else {
            Err(failed(format!("failed for {server}; run it by hand: `echo {server} | {program} get`")))
        };
    };
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| failed("answered something else than JSON with `Username` and `Secret`".to_owned()))?;
    let Answer { username, secret } = answer;
    Ok(Some(if username == TOKEN_USER {
        Credentials::IdentityToken(secret)
    } else {
        Credentials::Password { username, password: secret }
    }))
}

struct Finished {
    succeeded: Option<Vec<u8>>,
    says_not_found: bool,
}

async fn ask(program: &Path, server: &str, directory: &Path) -> io::Result<Finished> {
    let mut child = Command::new(program)
        .arg("get")
        .env("DOCKER_CONFIG", directory)
        // It has no business with the pool.
        .env_remove("SPACELIFT_TOKEN")
        .env_remove("SPACELIFT_POOL_PRIVATE_KEY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // A helper that does not read fails in its own way.
    let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
    drop(stdin);
    let mut output = Vec::new();
    child.stdout.take().expect("it is piped").take(MAXIMUM_ANSWER).read_to_end(&mut output).await?;
    let status = child.wait().await?;
    let says_not_found = String::from_utf8_lossy(&output).contains(NOT_FOUND);
    Ok(Finished { succeeded: status.success().then_some(output), says_not_found })
}
