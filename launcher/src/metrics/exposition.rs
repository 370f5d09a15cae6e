//! A [`Reading`] in the text format of Prometheus, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>.
//!
//! Names end in their unit, counters in `_total`. Labels have a handful of values each: no label names a run. What is said here
//! may be read by everybody who reaches the address, so nothing in it is a secret.

use std::fmt::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use super::{LEVELS, OUTCOMES, Phase, Reading, Word};

/// What the answer's `Content-Type` is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics, each with its `HELP` and `TYPE`.
#[must_use]
pub fn text(reading: &Reading<'_>) -> String {
    let mut page = Page::default();
    process(&mut page, reading);
    state(&mut page, reading);
    peers(&mut page, reading);
    runs(&mut page, reading);
    logs(&mut page, reading);
    page.0
}

fn process(page: &mut Page, reading: &Reading<'_>) {
    if let Some(begun) = reading.metrics.begun.get() {
        page.gauge("spacelift_launcher_build_info", "What this launcher was built of; always 1.");
        page.sample(&[("version", begun.version), ("commit", begun.commit), ("target", begun.target)], 1);
        page.gauge("process_start_time_seconds", "When the process began, in seconds of Unix time.");
        page.sample(&[], begun.clock.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
    if let Some(worker) = reading.metrics.worker.get() {
        page.gauge("spacelift_launcher_worker_info", "Which worker of which pool this is; always 1.");
        page.sample(&[("pool", &worker.pool.to_string()), ("worker", &worker.id.to_string())], 1);
        page.gauge(
            "spacelift_launcher_pool_certificate_expiry_timestamp_seconds",
            "When the pool's certificate expires, in seconds of Unix time.",
        );
        page.sample(&[], worker.certificate_expires);
    }
}

fn state(page: &mut Page, reading: &Reading<'_>) {
    page.gauge("spacelift_launcher_state", "1 for what the launcher does now, 0 for everything else.");
    for word in Word::ALL {
        page.sample(&[("state", word.name())], u8::from(word == reading.word()));
    }
    page.gauge("spacelift_launcher_registered", "Whether the control plane has accepted this worker since the start.");
    page.sample(&[], u8::from(reading.is_registered));
    page.gauge("spacelift_launcher_session_connected", "Whether there is a session with the broker.");
    page.sample(&[], u8::from(reading.is_connected));
    page.gauge(
        "spacelift_launcher_loop_age_seconds",
        "How long ago the launcher's loop turned last. It turns every 10 seconds, or it hangs.",
    );
    page.sample(&[], seconds(reading.loop_age));
}

fn peers(page: &mut Page, reading: &Reading<'_>) {
    let metrics = reading.metrics;
    page.gauge(
        "spacelift_launcher_unreachable_seconds",
        "For how long somebody has been tried in vain; 0 while nothing waits for it.",
    );
    let peers = [("broker", reading.broker), ("api", reading.api), ("object_store", reading.object_store)];
    for (name, peer) in peers {
        page.sample(&[("peer", name)], seconds(peer.unreachable.unwrap_or_default()));
    }
    page.gauge(
        "spacelift_launcher_broker_contact_age_seconds",
        "How long ago the broker sent anything; since the start if it has not. It answers every 30 seconds.",
    );
    page.sample(&[], seconds(reading.broker.age));
    page.gauge(
        "spacelift_launcher_api_success_age_seconds",
        "How long ago the API granted a request; since the start if it has not. An idle launcher makes none.",
    );
    page.sample(&[], seconds(reading.api.age));
    page.counter("spacelift_launcher_mqtt_connections_total", "Sessions with the broker that came about.");
    page.sample(&[], metrics.connections.get());
    page.counter(
        "spacelift_launcher_mqtt_disconnections_total",
        "Sessions with the broker that broke, and attempts at one that failed.",
    );
    page.sample(&[], metrics.disconnections.get());
    page.counter(
        "spacelift_launcher_api_retries_total",
        "Requests that the API did not answer, and that were made again.",
    );
    page.sample(&[], metrics.api_retries.get());
    page.counter("spacelift_launcher_api_refusals_total", "Requests that the API refused.");
    page.sample(&[], metrics.api_refusals.get());
    page.counter("spacelift_launcher_upload_retries_total", "Uploads to the object store that were tried again.");
    page.sample(&[], metrics.upload_retries.get());
}

fn runs(page: &mut Page, reading: &Reading<'_>) {
    let metrics = reading.metrics;
    page.counter("spacelift_launcher_runs_taken_total", "Stages of runs that this launcher was given.");
    page.sample(&[], metrics.runs_taken.get());
    page.counter("spacelift_launcher_runs_ended_total", "Stages of runs that have ended, by how they ended.");
    for ((_, outcome), counter) in OUTCOMES.iter().zip(&metrics.outcomes) {
        page.sample(&[("outcome", outcome)], counter.get());
    }
    page.counter("spacelift_launcher_claims_failed_total", "Runs that were offered and not given.");
    page.sample(&[], metrics.claims_failed.get());
    page.gauge("spacelift_launcher_run_phase", "1 for what is done for the present run, 0 for everything else.");
    for phase in Phase::ALL {
        page.sample(&[("phase", phase.name())], u8::from(reading.phase == Some(phase)));
    }
    page.gauge(
        "spacelift_launcher_run_phase_age_seconds",
        "How long the present run has been in its phase; 0 without a run.",
    );
    page.sample(&[], seconds(reading.phase.map_or(Duration::ZERO, |_| reading.phase_age)));
}

fn logs(page: &mut Page, reading: &Reading<'_>) {
    let metrics = reading.metrics;
    page.gauge("spacelift_launcher_spool_bytes", "Bytes of the present run's log that wait on the disk.");
    page.sample(&[], reading.spool.bytes);
    page.gauge("spacelift_launcher_spool_chunks", "Chunks of the present run's log that wait on the disk.");
    page.sample(&[], reading.spool.chunks);
    page.counter("spacelift_launcher_run_log_lines_total", "Lines of ended runs' logs that the object store has.");
    page.sample(&[], metrics.run_log_lines.get());
    page.counter("spacelift_launcher_run_log_bytes_total", "Bytes of ended runs' logs that the object store has.");
    page.sample(&[], metrics.run_log_bytes.get());
    page.counter("spacelift_launcher_log_lines_total", "Lines of the launcher's own log, by level.");
    for ((_, level), counter) in LEVELS.iter().zip(&metrics.log_lines) {
        page.sample(&[("level", level)], counter.get());
    }
    page.counter(
        "spacelift_launcher_log_lines_lost_total",
        "Lines on standard output and standard error that nobody read in time.",
    );
    page.sample(&[], metrics.lines_lost.get());
}

/// Milliseconds are enough.
fn seconds(duration: Duration) -> f64 {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)).as_secs_f64()
}

/// The format's rules, in one place. Writing to a string does not fail.
#[derive(Default)]
struct Page(String, &'static str);

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.1 = name;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Of the latest family.
    fn sample(&mut self, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(self.1);
        for (place, (name, label)) in labels.iter().enumerate() {
            let label = label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{name}=\"{label}\"", if place == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use launcher_wire::id::{PoolId, WorkerId};

    use super::super::Metrics;
    use super::*;

    fn whole() -> String {
        let metrics = Metrics::new();
        metrics.begin("v1.2.3", "unknown", "x86_64-unknown-linux-musl");
        metrics.identify(PoolId::new(), WorkerId::new(), 5);
        text(&metrics.read())
    }

    /// Letters of names, as the format has them.
    fn name_of(line: &str) -> &str {
        line.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').next().unwrap()
    }

    #[test]
    fn every_sample_follows_the_help_and_the_type_of_its_family() {
        let text = whole();
        assert!(text.ends_with('\n'));
        let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = line.strip_prefix("# HELP ").expect(line).split_once(' ').unwrap();
            assert!(families.insert(name), "{name} stands twice");
            assert!(help.ends_with('.'), "{help}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).expect(line);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            let mut count = 0;
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                assert_eq!(name_of(sample), name);
                let (series, value) = sample.rsplit_once(' ').unwrap();
                assert!(samples.insert(series.to_owned()), "{series} stands twice");
                assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{sample}");
                count += 1;
            }
            assert!(count > 0, "{name} has no sample");
        }
        assert!(families.len() > 20, "{families:?}");
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.gauge("name", "one\\two\nthree");
        page.sample(&[("a", "\"\\\n"), ("b", "plain")], 1.5);
        assert_eq!(
            page.0,
            "# HELP name one\\\\two\\nthree\n# TYPE name gauge\nname{a=\"\\\"\\\\\\n\",b=\"plain\"} 1.5\n"
        );
    }

    /// Words in a text that look like metrics of a launcher.
    fn mentioned(text: &str) -> BTreeSet<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let words = words.filter(|word| word.starts_with("spacelift_launcher_") || word.starts_with("process_"));
        words.map(str::to_owned).collect()
    }

    #[test]
    fn what_dashboard_alerts_and_documentation_name_is_there() {
        let text = whole();
        let families: BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()).collect();
        for file in ["grafana-launcher.json", "alerts.yml", "observability.md"] {
            let path = format!("{}/../docs/{file}", env!("CARGO_MANIFEST_DIR"));
            let found = mentioned(&std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")));
            assert!(found.len() > 5, "{file}: {found:?}");
            for name in &found {
                assert!(families.contains(name.as_str()), "{file} names {name}, which no launcher has");
            }
            if file == "observability.md" {
                let missing: Vec<_> = families.iter().filter(|name| !found.contains(**name)).collect();
                assert!(missing.is_empty(), "{file} does not name {missing:?}");
            }
        }
    }
}
