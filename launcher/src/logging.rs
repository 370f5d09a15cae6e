//! The launcher's own log: what is in order on standard output, what needs somebody's attention on standard error.

use std::fmt;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use spacelift_launcher::config::{LogFormat, LogSettings};
use spacelift_launcher::metrics;
use spacelift_launcher::output::{standard_error, standard_output};
use tracing::field::{Field, Visit};
use tracing::subscriber::set_global_default;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::writer::MakeWriterExt as _;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// What modules of the launcher begin with.
const OWN: &str = "spacelift_launcher";

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Begins to log. A second call changes nothing.
pub(crate) fn start(settings: &LogSettings) {
    let LogSettings { format, filter } = settings.clone();
    if FORMAT.set(format).is_err() {
        return;
    }
    let most = filter.iter().map(|(_, level)| level).chain(filter.default_level()).max().unwrap_or(LevelFilter::INFO);
    let wanted = move |line: &Metadata<'_>| {
        is_harmless(line.target(), *line.level()) && filter.would_enable(line.target(), line.level())
    };
    let lines = tracing_subscriber::registry().with(filter_fn(wanted).with_max_level_hint(most)).with(Count);
    // Nobody else sets one.
    let _ = match format {
        LogFormat::Human => {
            let writer = standard_error.with_max_level(Level::WARN).or_else(standard_output);
            let human = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).with_writer(writer);
            set_global_default(lines.with(human))
        }
        LogFormat::Json => set_global_default(lines.with(Json)),
    };
}

/// Says with what the process ends, where lines are for machines. Gives whether it did.
pub(crate) fn tell_end(error: &dyn fmt::Display) -> bool {
    // A filter that hides it would leave nobody to say it.
    let is_json = FORMAT.get() == Some(&LogFormat::Json) && tracing::enabled!(Level::ERROR);
    if is_json {
        tracing::error!("{error}");
    }
    is_json
}

/// What libraries print in detail may hold what they send and receive: tokens, keys, jobs.
fn is_harmless(target: &str, level: Level) -> bool {
    let is_own = target.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    level <= Level::INFO || is_own
}

/// Counts lines for the metrics.
struct Count;

impl<S: Subscriber> Layer<S> for Count {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        metrics::shared().logged(*event.metadata().level());
    }
}

/// Writes each line as an object: `ts` in milliseconds of Unix time, `level`, `module`, `msg`, and what else there is in
/// `fields`. `ts` and `msg` are as in the copies of runs' logs, which may be between these lines and have a `run_ulid`.
struct Json;

impl<S: Subscriber> Layer<S> for Json {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = format!("{}\n", object(event));
        let level = *event.metadata().level();
        let output = if level <= Level::WARN { standard_error() } else { standard_output() };
        output.line(line.into_bytes());
    }
}

fn object(event: &Event<'_>) -> Value {
    let metadata = event.metadata();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let mut object = json!({
        "ts": u64::try_from(now.as_millis()).unwrap_or_default(),
        "level": metadata.level().as_str().to_ascii_lowercase(),
        "module": metadata.target(),
        "msg": fields.message,
    });
    if !fields.others.is_empty() {
        object["fields"] = Value::Object(fields.others);
    }
    object
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, Value::String(text));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, Value::String(value.to_owned()));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        // Milliseconds are of this type, and fit.
        self.put(field, u64::try_from(value).unwrap_or(u64::MAX).into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what [`object`] makes.
    struct Keep(Arc<Mutex<Vec<Value>>>);

    impl<S: Subscriber> Layer<S> for Keep {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(object(event));
        }
    }

    #[test]
    fn a_line_has_its_parts_apart() {
        let kept = Arc::new(Mutex::new(vec![]));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Keep(Arc::clone(&kept))), || {
            tracing::warn!(run = %"R", wait_ms = 5_u128, is_late = true, "one \"line\"\nof {}", 2);
        });
        let mut line = kept.lock().unwrap().remove(0);
        assert!(line["ts"].take().as_u64().unwrap() > 1_700_000_000_000);
        let fields = json!({ "run": "R", "wait_ms": 5, "is_late": true });
        let module = "spacelift_launcher::logging::tests";
        let msg = "one \"line\"\nof 2";
        assert_eq!(line, json!({ "ts": null, "level": "warn", "module": module, "msg": msg, "fields": fields }));
        assert!(!line.to_string().contains('\n'));
    }

    #[test]
    fn details_of_libraries_are_nobodys_business() {
        assert!(
            is_harmless("spacelift_launcher", Level::TRACE) && is_harmless("spacelift_launcher::agent", Level::DEBUG)
        );
        assert!(!is_harmless("spacelift_launcherish", Level::DEBUG) && !is_harmless("h2::codec", Level::DEBUG));
        assert!(is_harmless("h2::codec", Level::INFO));
    }
}
