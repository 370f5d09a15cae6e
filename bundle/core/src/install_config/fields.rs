//! The fields of `config.json`: their names, their types, who uses them, and what a wrong name was meant to be.

/// Type of a field.
pub(super) enum Shape {
    Text,
    Whole,
    /// A list of strings.
    Texts,
    /// An object with these fields.
    Object(&'static [Field]),
    /// A list of such objects.
    Objects(&'static [Field]),
    /// What existing files have as `true`, as `"true"` or as `""`.
    Switch,
    /// What existing files have as `7` or as `"7"`.
    Count,
}

/// Who uses a field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    Installer,
    Backend,
}

/// A known field.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) used: For,
}

const fn ours(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, used: For::Installer }
}

const fn backend(name: &'static str, shape: Shape) -> Field {
    Field { name, shape, used: For::Backend }
}

/// The one field of `s3_config` that the installer uses.
pub(super) const NONCURRENT_DAYS: &str = "s3_config.downloads_bucket_noncurrent_expiration_days";

/// Every field: those that this installer uses, and those of the backend in files of existing installations.
pub(super) const FIELDS: &[Field] = &[
    ours("aws_region", Shape::Text),
    ours("aws_account_id", Shape::Text),
    ours("aws_profile", Shape::Text),
    ours("signers", Shape::Texts),
    ours("threshold", Shape::Whole),
    ours("downloads_bucket_name", Shape::Text),
    ours("launcher_repository_name", Shape::Text),
    ours("stack_names", Shape::Object(&[ours("s3", Shape::Text), ours("ecr", Shape::Text)])),
    ours("global_resource_tags", Shape::Objects(&[ours("key", Shape::Text), ours("value", Shape::Text)])),
    ours(
        "proxy_config",
        Shape::Object(&[
            ours("http_proxy", Shape::Text),
            ours("https_proxy", Shape::Text),
            ours("no_proxy", Shape::Text),
        ]),
    ),
    ours(
        "s3_config",
        Shape::Object(&[
            ours("downloads_bucket_noncurrent_expiration_days", Shape::Whole),
            backend("run_logs_expiration_days", Shape::Count),
            backend("deliveries_bucket_expiration_days", Shape::Count),
            backend("large_queue_messages_bucket_expiration_days", Shape::Count),
            backend("metadata_bucket_expiration_days", Shape::Count),
            backend("policy_inputs_bucket_expiration_days", Shape::Count),
            backend("uploads_bucket_expiration_days", Shape::Count),
            backend("user_uploaded_workspaces_bucket_expiration_days", Shape::Count),
            backend("workspaces_bucket_expiration_days", Shape::Count),
            backend("access_logs_bucket_expiration_days", Shape::Count),
        ]),
    ),
    backend("account_name", Shape::Text),
    backend("spacelift_hostname", Shape::Text),
    backend("webhooks_endpoint", Shape::Text),
    backend("iot_broker_endpoint", Shape::Text),
    backend("disable_services", Shape::Switch),
    backend("tracing_enabled", Shape::Switch),
    backend("automatically_report_usage_data", Shape::Switch),
    backend("alerting", Shape::Object(&[backend("sns_topic_arn", Shape::Text)])),
    backend(
        "load_balancer",
        Shape::Object(&[
            backend("certificate_arn", Shape::Text),
            backend("scheme", Shape::Text),
            backend("ssl_policy", Shape::Text),
            backend("subnet_placement", Shape::Text),
            backend("tag", Shape::Object(&[backend("key", Shape::Text), backend("value", Shape::Text)])),
        ]),
    ),
    backend(
        "database",
        Shape::Object(&[
            backend("delete_protection_enabled", Shape::Switch),
            backend("instance_class", Shape::Text),
            backend("postgres_engine_version", Shape::Text),
            backend("db_cluster_identifier", Shape::Text),
            backend("connection_string_ssm_arn", Shape::Text),
            backend("connection_string_ssm_kms_arn", Shape::Text),
        ]),
    ),
    backend(
        "sso_config",
        Shape::Object(&[
            backend("admin_login", Shape::Text),
            backend("sso_type", Shape::Text),
            backend("update_on_install", Shape::Switch),
            backend(
                "oidc_args",
                Shape::Object(&[
                    backend("client_id", Shape::Text),
                    backend("client_credentials", Shape::Text),
                    backend("identity_provider_host", Shape::Text),
                ]),
            ),
            backend(
                "saml_args",
                Shape::Object(&[
                    backend("metadata", Shape::Text),
                    backend("dynamic", Shape::Switch),
                    backend("name_id_format", Shape::Text),
                    backend("update_on_install", Shape::Switch),
                ]),
            ),
        ]),
    ),
    backend(
        "slack_config",
        Shape::Object(&[
            backend("enabled", Shape::Switch),
            backend("client_id", Shape::Text),
            backend("client_secret", Shape::Text),
            backend("signing_secret", Shape::Text),
        ]),
    ),
    backend(
        "tls_config",
        Shape::Object(&[
            backend("server_certificate_secrets_manager_arn", Shape::Text),
            backend("ca_certificates", Shape::Texts),
        ]),
    ),
    backend(
        "vpc_config",
        Shape::Object(&[
            backend("use_custom_vpc", Shape::Switch),
            backend("vpc_id", Shape::Text),
            backend("vpc_cidr_block", Shape::Text),
            backend("subnet_mask_size", Shape::Count),
            backend("private_subnet_ids", Shape::Text),
            backend("public_subnet_ids", Shape::Text),
            backend("availability_zones", Shape::Text),
            backend("drain_security_group_id", Shape::Text),
            backend("load_balancer_security_group_id", Shape::Text),
            backend("server_security_group_id", Shape::Text),
            backend("scheduler_security_group_id", Shape::Text),
            backend("installation_task_security_group_id", Shape::Text),
            backend("database_security_group_id", Shape::Text),
        ]),
    ),
    backend(
        "disaster_recovery",
        Shape::Object(&[
            backend("is_dr_instance", Shape::Switch),
            backend("replica_region", Shape::Text),
            backend("encryption_primary_key_arn", Shape::Text),
            backend(
                "s3_bucket_replication",
                Shape::Object(&[
                    backend("enabled", Shape::Switch),
                    backend("replica_kms_key_arn", Shape::Text),
                    backend("states_bucket_arn", Shape::Text),
                    backend("run_logs_bucket_arn", Shape::Text),
                    backend("modules_bucket_arn", Shape::Text),
                    backend("policy_inputs_bucket_arn", Shape::Text),
                    backend("workspaces_bucket_arn", Shape::Text),
                ]),
            ),
        ]),
    ),
];

/// What a name that nothing has was meant to be.
pub(super) fn suggestion(name: &str, path: &str, fields: &[Field]) -> String {
    let lower = name.to_lowercase();
    // Among its neighbours first; a field in the wrong place has exactly the name that it should have.
    let near = fields
        .iter()
        .map(|field| (distance(&lower, field.name), field.name))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .min();
    if let Some((_, known)) = near {
        return format!("; did you mean `{known}`?");
    }
    let mut places = Vec::new();
    places_of(&lower, "", FIELDS, &mut places);
    match places.first() {
        Some(place) if path.is_empty() || !place.starts_with(&format!("{path}.")) => {
            format!("; there is `{place}`: it belongs there")
        }
        _ => "; remove it, or see the documentation for the names".to_owned(),
    }
}

fn places_of(name: &str, path: &str, fields: &[Field], places: &mut Vec<String>) {
    for field in fields {
        let place = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        if field.name == name {
            places.push(place.clone());
        }
        if let Shape::Object(inner) = &field.shape {
            places_of(name, &place, inner, places);
        }
    }
}

/// Edit distance with transpositions of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let changed = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances() {
        assert_eq!(distance("shceme", "scheme"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
