//! A run that is watched: its states and its log, as they come.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use launcher_wire::api::RunState;
use launcher_wire::id::{RunId, WorkerId};
use mothership::admin::{Client, Run};

use super::{POLL, check_interruption, say};

/// How long a stage may take. It takes ten seconds; a machine under load takes a minute.
const LIMIT: Duration = Duration::from_secs(300);

/// A run, as far as it has been shown.
pub(super) struct Watch<'a> {
    client: &'a Client,
    run: RunId,
    /// Names of workers, as their launchers told them.
    names: BTreeMap<WorkerId, String>,
    /// When the run was asked for, in milliseconds since 1970.
    created: u64,
    /// Changes of state that have been shown.
    changes: usize,
    /// Bytes of the log that have been read.
    read: u64,
    /// Those of them that are no whole line yet.
    rest: Vec<u8>,
    /// Of each stage, when the first bytes of its log were seen in the store, in milliseconds since 1970.
    first_lines: Vec<u64>,
}

impl<'a> Watch<'a> {
    /// Of a run that was just asked for.
    pub(super) fn new(client: &'a Client, run: RunId) -> Result<Self> {
        let name = |worker: &mothership::admin::Worker| worker.metadata.get("name").cloned().unwrap_or_default();
        let names = client.workers()?.iter().map(|worker| (worker.id, name(worker))).collect();
        let created = client.run(run)?.history.first().map_or_else(now, |change| change.at);
        Ok(Self { client, run, names, created, changes: 0, read: 0, rest: vec![], first_lines: vec![] })
    }

    /// The launcher of a worker.
    pub(super) fn name(&self, worker: WorkerId) -> &str {
        self.names.get(&worker).map_or("a launcher", String::as_str)
    }

    /// Shows everything until the run is in a state.
    pub(super) fn until(&mut self, state: RunState) -> Result<Run> {
        let begun = Instant::now();
        loop {
            check_interruption()?;
            // In this order: a stage ends when its log is stored, so that the log has all that belongs to the state.
            let present = self.client.run(self.run)?;
            self.show_log(&present)?;
            self.show_changes(&present)?;
            if present.state == state {
                return Ok(present);
            }
            if present.state.is_terminal() {
                bail!("the run ended as {}: {}", word(present.state), present.message);
            }
            if begun.elapsed() > LIMIT {
                bail!("the run is still {} after {} seconds", word(present.state), LIMIT.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    fn show_log(&mut self, present: &Run) -> Result<()> {
        loop {
            let part = self.client.log(self.run, self.read)?;
            if part.bytes.is_empty() {
                return Ok(());
            }
            if self.first_lines.len() < present.stages.len() {
                self.first_lines.push(now());
            }
            self.read += part.bytes.len() as u64;
            self.rest.extend(part.bytes);
            let time = self.since_request(now());
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                // What a job prints is not to move the cursor.
                let line = String::from_utf8_lossy(&line).replace(char::is_control, "");
                say(&format!("{time}  │ {line}"))?;
            }
        }
    }

    fn show_changes(&mut self, present: &Run) -> Result<()> {
        for change in present.history.iter().skip(self.changes) {
            let worker = match (change.state, present.stages.last()) {
                (RunState::Preparing | RunState::PreparingApply, Some(stage)) => {
                    format!(" on {}, worker {}", self.name(stage.worker), stage.worker)
                }
                _ => String::new(),
            };
            say(&format!("{}  {}{worker}", self.since_request(change.at), word(change.state)))?;
        }
        self.changes = present.history.len();
        Ok(())
    }

    fn since_request(&self, at: u64) -> String {
        seconds(at.saturating_sub(self.created))
    }

    /// How long everything took: changes of state by the control plane's clock, first lines by that of this program, which is
    /// the same machine's.
    pub(super) fn timings(&self, ended: &Run) -> String {
        use RunState::{
            Applying, Confirmed, Finished, Initializing, Planning, Preparing, PreparingApply, Queued, Unconfirmed,
        };
        let at = |state: RunState| ended.history.iter().find(|change| change.state == state).map(|change| change.at);
        let line = |stage: usize| self.first_lines.get(stage).copied();
        let rows = [
            ("request to assignment", at(Queued), at(Preparing)),
            ("assignment to first line in the store", at(Preparing), line(0)),
            ("prepare: image, container, workspace", at(Preparing), at(Initializing)),
            ("init", at(Initializing), at(Planning)),
            ("plan, until log and workspace are stored", at(Planning), at(Unconfirmed)),
            ("confirmation to assignment", at(Confirmed), at(PreparingApply)),
            ("assignment to first line in the store", at(PreparingApply), line(1)),
            ("prepare: container, workspace of the plan", at(PreparingApply), at(Applying)),
            ("apply, until its log is stored", at(Applying), at(Finished)),
        ];
        let mut text = "\nHow long it took".to_owned();
        for (what, from, to) in rows {
            // Of a run that was discarded, there is no second half.
            if let (Some(from), Some(to)) = (from, to) {
                text += &format!("\n{}  {what}", seconds(to.saturating_sub(from)));
            }
        }
        text
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{:6.2} s", Duration::from_millis(milliseconds).as_secs_f32())
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// As the wire has it.
fn word(state: RunState) -> String {
    let value = serde_json::to_value(state).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
