use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use super::*;

/// Keys and signatures are made by another program than the one that checks them.
fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl is not installed; it is in the Debian package `openssl`");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

struct Pairs {
    directory: TempDir,
}

impl Pairs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, options) in [
            ("rsa", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
            ("other", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
            ("short", ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]),
            ("p256", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
            ("p384", ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ] {
            let at =
                |extension: &str| directory.path().join(format!("{name}.{extension}")).to_str().unwrap().to_owned();
            let (key, public, certificate) = (at("key"), at("pub"), at("crt"));
            openssl(&[&["genpkey", "-quiet", "-out", &key], options.as_slice()].concat());
            openssl(&["pkey", "-in", &key, "-pubout", "-out", &public]);
            openssl(&["req", "-x509", "-key", &key, "-subj", "/CN=ci", "-out", &certificate]);
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
}

static PAIRS: LazyLock<Pairs> = LazyLock::new(Pairs::new);

fn encoded(json: &Json) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(json.to_string())
}

/// A token whose header says `algorithm`, signed as `scheme` has it with the key `key`.
fn token_as(algorithm: &str, scheme: &str, key: &str, payload: &Json) -> String {
    let signed = format!("{}.{}", encoded(&json!({ "alg": algorithm, "typ": "JWT" })), encoded(payload));
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::write(&data, &signed).unwrap();
    let digest = format!("-sha{}", &scheme[2..]);
    let (data, path) = (data.to_str().unwrap(), PAIRS.path(&format!("{key}.key")));
    let path = path.to_str().unwrap();
    let signature = match &scheme[..2] {
        "HS" => openssl(&["dgst", "-binary", &digest, "-hmac", key, data]),
        "RS" => openssl(&["dgst", &digest, "-sign", path, data]),
        "PS" => {
            let options = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"];
            openssl(&[&["dgst", &digest, "-sign", path], options.as_slice(), &[data]].concat())
        }
        _ => fixed(&openssl(&["dgst", &digest, "-sign", path, data]), if key == "p256" { 32 } else { 48 }),
    };
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn token(algorithm: &str, key: &str, payload: &Json) -> String {
    token_as(algorithm, algorithm, key, payload)
}

/// Two numbers in DER, as tokens have them: one after the other, `size` bytes each.
fn fixed(der: &[u8], size: usize) -> Vec<u8> {
    let number = |at: usize| -> (Vec<u8>, usize) {
        let length = usize::from(der[at + 1]);
        let bytes = &der[at + 2..at + 2 + length];
        let bytes: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
        ([vec![0; size - bytes.len()], bytes].concat(), at + 2 + length)
    };
    let (r, next) = number(2);
    [r, number(next).0].concat()
}

fn verify(function: &str, token: &str, keys: &str) -> Result<bool> {
    let result = call(&format!("io.jwt.verify_{function}"), &[json!(token), json!(keys)])?;
    Ok(result.as_bool().unwrap())
}

fn decode_verify(token: &str, constraints: Json) -> Result<bool> {
    let result = call("io.jwt.decode_verify", &[json!(token), constraints])?;
    let is_valid = result[0].as_bool().unwrap();
    assert!(is_valid || (result[1] == json!({}) && result[2] == json!({})), "{result}");
    Ok(is_valid)
}

#[test]
fn every_algorithm_accepts_its_own_key_and_no_other() {
    let payload = json!({ "sub": "ci" });
    let algorithms =
        [("rsa", "rs256"), ("rsa", "rs384"), ("rsa", "rs512"), ("rsa", "ps256"), ("rsa", "ps384"), ("rsa", "ps512")];
    let algorithms = algorithms.into_iter().chain([("p256", "es256"), ("p384", "es384")]);
    for (key, function) in algorithms {
        let token = token(&function.to_uppercase(), key, &payload);
        for kind in ["pub", "crt"] {
            assert!(verify(function, &token, &PAIRS.text(&format!("{key}.{kind}"))).unwrap(), "{function} {kind}");
        }
        for other in ["other", "p256", "p384"].into_iter().filter(|other| *other != key) {
            assert!(!verify(function, &token, &PAIRS.text(&format!("{other}.pub"))).unwrap(), "{function} {other}");
        }
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let changed = format!("{}.{}.{signature}", signed.split_once('.').unwrap().0, encoded(&json!({ "sub": "me" })));
        assert!(!verify(function, &changed, &PAIRS.text(&format!("{key}.pub"))).unwrap(), "{function}");
    }
    for function in ["hs256", "hs384", "hs512"] {
        let token = token(&function.to_uppercase(), "secret", &payload);
        assert!(verify(function, &token, "secret").unwrap(), "{function}");
        assert!(!verify(function, &token, "Secret").unwrap(), "{function}");
    }
}

#[test]
fn a_header_cannot_choose_what_it_is_checked_with() {
    let payload = json!({ "sub": "ci" });
    let public = PAIRS.text("rsa.pub");
    // The public key as a shared secret.
    let directory = tempfile::tempdir().unwrap();
    let confused = {
        let signed = format!("{}.{}", encoded(&json!({ "alg": "HS256" })), encoded(&payload));
        let data = directory.path().join("data");
        fs::write(&data, &signed).unwrap();
        let signature = openssl(&["dgst", "-binary", "-sha256", "-hmac", &public, data.to_str().unwrap()]);
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    };
    assert!(verify("hs256", &confused, &public).unwrap(), "the token is well made");
    assert!(!verify("rs256", &confused, &public).unwrap());
    assert!(!decode_verify(&confused, json!({ "cert": public })).unwrap());
    assert!(!decode_verify(&confused, json!({ "cert": public, "alg": "HS256" })).unwrap());
    // No signature at all.
    for algorithm in ["none", "None", "NONE", ""] {
        let unsigned = format!("{}.{}.", encoded(&json!({ "alg": algorithm })), encoded(&payload));
        for function in ["rs256", "es256", "ps256"] {
            assert!(!verify(function, &unsigned, &public).unwrap(), "{function} {algorithm}");
        }
        assert!(!verify("hs256", &unsigned, "secret").unwrap());
        assert!(!decode_verify(&unsigned, json!({ "cert": public })).unwrap(), "{algorithm}");
        assert!(!decode_verify(&unsigned, json!({ "secret": "s" })).unwrap(), "{algorithm}");
    }
    // A header that names another algorithm than the signature is of.
    assert!(!verify("rs256", &token_as("RS512", "RS256", "rsa", &payload), &public).unwrap());
    assert!(!verify("rs256", &token("PS256", "rsa", &payload), &public).unwrap());
    assert!(!decode_verify(&token("RS512", "rsa", &payload), json!({ "cert": public, "alg": "RS256" })).unwrap());
}

#[test]
fn claims_are_checked() {
    let cert = PAIRS.text("rsa.crt");
    let check = |payload: Json, constraints: Json| {
        let mut constraints = constraints;
        constraints["cert"] = json!(cert);
        decode_verify(&token("RS256", "rsa", &payload), constraints).unwrap()
    };
    assert!(check(json!({}), json!({})));
    assert!(check(json!({ "exp": 4_000_000_000_u64, "nbf": 1 }), json!({})));
    assert!(!check(json!({ "exp": 1 }), json!({})));
    assert!(!check(json!({ "nbf": 4_000_000_000_u64 }), json!({})));
    assert!(!check(json!({ "exp": "tomorrow" }), json!({})));
    assert!(check(json!({ "exp": 11 }), json!({ "time": 10_000_000_000_u64 })));
    assert!(!check(json!({ "exp": 10 }), json!({ "time": 10_000_000_000_u64 })));
    assert!(check(json!({ "iss": "a" }), json!({ "iss": "a" })));
    assert!(!check(json!({ "iss": "a" }), json!({ "iss": "b" })));
    assert!(!check(json!({}), json!({ "iss": "a" })));
    assert!(check(json!({ "aud": ["a", "b"] }), json!({ "aud": "b" })));
    assert!(!check(json!({ "aud": "a" }), json!({})));
    assert!(!check(json!({ "aud": "a" }), json!({ "aud": "b" })));
    assert!(!check(json!({}), json!({ "aud": "b" })));
    for constraints in
        [json!({}), json!({ "secret": "s", "cert": "c" }), json!({ "secret": "s", "ussuer": "a" }), json!("x")]
    {
        call("io.jwt.decode_verify", &[json!("a.b.c"), constraints.clone()]).expect_err(&constraints.to_string());
    }
}

#[test]
fn keys_come_in_sets_with_names() {
    use rsa::pkcs8::DecodePublicKey as _;
    use rsa::traits::PublicKeyParts as _;
    let text = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let rsa = |name: &str| {
        let key = RsaPublicKey::from_public_key_pem(&PAIRS.text(&format!("{name}.pub"))).unwrap();
        json!({ "kty": "RSA", "kid": name, "n": text(&key.n().to_bytes_be()), "e": text(&key.e().to_bytes_be()) })
    };
    let token = token("RS256", "rsa", &json!({}));
    assert!(verify("rs256", &token, &rsa("rsa").to_string()).unwrap());
    assert!(!verify("rs256", &token, &rsa("other").to_string()).unwrap());
    let set = json!({ "keys": [{ "kty": "OKP" }, rsa("other"), rsa("rsa")] });
    assert!(verify("rs256", &token, &set.to_string()).unwrap());
    let mut encryption = rsa("rsa");
    encryption["use"] = json!("enc");
    for keys in [encryption, json!({ "keys": [] }), json!({ "kty": "oct", "k": "AAAA" })] {
        verify("rs256", &token, &keys.to_string()).expect_err(&keys.to_string());
    }
    let short = PAIRS.text("short.pub");
    for keys in ["", "not a key", &PAIRS.text("rsa.key"), &short] {
        verify("rs256", &token, keys).expect_err(keys);
    }
    verify("hs256", &token, "").expect_err("an empty secret");
}

#[test]
fn what_is_no_token_is_an_error_and_never_valid() {
    let cert = PAIRS.text("rsa.crt");
    let good = token("RS256", "rsa", &json!({}));
    let critical = format!("{}.e30.AA", encoded(&json!({ "alg": "RS256", "crit": ["x"] })));
    for text in [
        "",
        "a",
        "a.b",
        "..",
        "e30.e30",
        "e30.W10.AA",
        &format!("{good}."),
        &format!("{good}=="),
        &critical,
        &"a".repeat(MAXIMUM_TOKEN + 1),
    ] {
        call("io.jwt.decode", &[json!(text)]).expect_err(text);
        assert!(!decode_verify(text, json!({ "cert": cert })).unwrap(), "{text}");
    }
    call("io.jwt.decode", &[json!(1)]).expect_err("a number");
    let decoded = call("io.jwt.decode", &[json!(good)]).unwrap();
    assert_eq!(decoded[0], json!({ "alg": "RS256", "typ": "JWT" }));
    assert_eq!(decoded[2].as_str().unwrap().len(), 512);
}

#[test]
fn a_policy_lets_only_runs_begin_that_its_own_ci_signed() {
    let policy = format!(
        "package spacelift\nkey := `{}`\ndeny[\"not signed by our CI\"] {{ not signed }}\nsigned {{ [ok, _, payload] := \
         io.jwt.decode_verify(input.run.user_provided_metadata[0], {{\"cert\": key, \"alg\": \"ES256\"}}); ok; \
         payload.commit == input.commit.hash }}",
        PAIRS.text("p256.pub")
    );
    let policy = crate::policy::Policy::compile(&policy, "p.rego").unwrap();
    let deny = |token: &str, commit: &str| {
        let input = json!({ "run": { "user_provided_metadata": [token] }, "commit": { "hash": commit } });
        policy.evaluate(input).deny
    };
    let signed = token("ES256", "p256", &json!({ "commit": "abc" }));
    assert!(deny(&signed, "abc").is_empty());
    assert_eq!(deny(&signed, "def"), ["not signed by our CI"]);
    assert_eq!(deny("nonsense", "abc"), ["not signed by our CI"]);
    assert!(!policy.evaluate(json!({})).deny.is_empty());
}
