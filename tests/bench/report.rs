//! What was measured: printed as it comes, and kept for the report.
//!
//! Benchmarks say what they find by [`heading`], [`say`], [`row`], [`figure`], [`beside`] and [`share`]. Each of them prints a
//! line, so that somebody can watch, and keeps it in a section of the report, which [`write`] turns into a page with plots.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::race::Race;
use crate::svg::{self, Bar, Line, number, quantile};

/// What a row with two programs is to show.
pub(crate) enum Goal {
    /// Theirs takes at least this many times as long.
    Faster(f64),
    /// Ours takes at most this share of their time.
    ShareOfWall(f64),
}

/// What a figure is to be.
#[derive(Clone, Copy)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Self::AtMost(most) => format!("at most {}", with_unit(most, unit)),
            Self::AtLeast(least) => format!("at least {}", with_unit(least, unit)),
        }
    }
}

/// A row of a table.
#[derive(Default)]
struct Row {
    name: String,
    ours: String,
    /// Another tool's name, and what it needed.
    theirs: Option<(String, String)>,
    /// With its range, where there is one.
    ratio: Option<String>,
    goal: Option<(String, bool)>,
}

#[derive(Default)]
struct Section {
    benchmark: String,
    title: String,
    rows: Vec<Row>,
    bars: Vec<Bar>,
    lines: Vec<svg::Lines>,
    notes: Vec<String>,
}

struct Report {
    benchmark: String,
    sections: Vec<Section>,
    failures: Vec<String>,
}

static REPORT: Mutex<Report> =
    Mutex::new(Report { benchmark: String::new(), sections: Vec::new(), failures: Vec::new() });

fn report() -> MutexGuard<'static, Report> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Report {
    fn section(&mut self) -> &mut Section {
        if self.sections.last().is_none_or(|section| section.benchmark != self.benchmark) {
            // What is said before there is a heading.
            let benchmark = self.benchmark.clone();
            self.sections.push(Section { title: benchmark.clone(), benchmark, ..Section::default() });
        }
        let last = self.sections.len() - 1;
        &mut self.sections[last]
    }
}

/// From here on, what is said is of this benchmark.
pub(crate) fn begin(benchmark: &str) {
    benchmark.clone_into(&mut report().benchmark);
}

/// The report is to say that this benchmark is missing in it. Not why: messages name paths.
pub(crate) fn fail(benchmark: &str) {
    report().failures.push(benchmark.to_owned());
}

/// Prints a line that is no part of the report.
pub(crate) fn print(text: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Begins a section.
pub(crate) fn heading(text: &str) {
    // Nobody reads any more: what follows says so.
    let _ = print(&format!("\n{text}"));
    let mut report = report();
    let benchmark = report.benchmark.clone();
    report.sections.push(Section { benchmark, title: text.to_owned(), ..Section::default() });
}

/// Says something that has no goal.
pub(crate) fn say(text: &str) -> Result<()> {
    print(text)?;
    report().section().notes.push(text.trim().to_owned());
    Ok(())
}

/// Two programs. The name is that of the other one, or, before a colon and a space, of what both of them do.
pub(crate) fn row(name: &str, race: &Race, goal: Goal) -> Result<()> {
    let [low, median, high] = race.ratio;
    let (ratio, goal, met) = match goal {
        Goal::Faster(times) => {
            (format!("{median:.2}x as fast ({low:.2} to {high:.2})"), format!("{times}x"), median >= times)
        }
        Goal::ShareOfWall(share) => (
            format!("{:.2} of the wall time ({:.2} to {:.2})", 1.0 / median, 1.0 / high, 1.0 / low),
            format!("{share}"),
            1.0 / median <= share,
        ),
    };
    let [ours, theirs] = [race.ours, race.theirs].map(|time| time.as_secs_f64());
    print(&format!("  {name}: ours {ours:.3} s, theirs {theirs:.3} s, {ratio}; goal {goal}: {}", verdict(met)))?;
    let (what, tool) = name.split_once(": ").unwrap_or(("time", name));
    let mut report = report();
    let section = report.section();
    section.bars.push(Bar::new(what, tool, [ours, theirs], "s"));
    section.rows.push(Row {
        name: what.to_owned(),
        ours: format!("{ours:.3} s"),
        theirs: Some((tool.to_owned(), format!("{theirs:.3} s"))),
        ratio: Some(ratio),
        goal: Some((goal, met)),
    });
    Ok(())
}

/// Processor time of both programs, of which ours is to need at most a share.
pub(crate) fn cpu_row(race: &Race, most: f64) -> Result<()> {
    share("processor time", "theirs", [race.our_cpu.as_secs_f64(), race.their_cpu.as_secs_f64()], "s", Some(most))
}

/// A figure of ours, with nothing beside it. The unit may be empty.
pub(crate) fn figure(name: &str, value: f64, unit: &str, goal: Option<Limit>) -> Result<()> {
    let ours = with_unit(value, unit);
    let goal = goal.map(|goal| (goal.text(unit), goal.is_met(value)));
    print(&format!("  {name}: {ours}{}", ending(goal.as_ref())))?;
    report().section().rows.push(Row { name: name.to_owned(), ours, goal, ..Row::default() });
    Ok(())
}

/// A figure of ours beside that of another tool. The goal is for ours.
pub(crate) fn beside(name: &str, tool: &str, both: [f64; 2], unit: &str, goal: Option<Limit>) -> Result<()> {
    pair(name, tool, both, unit, goal.map(|goal| (goal.text(unit), goal.is_met(both[0]))))
}

/// The same, where the goal is the most that ours may be as a share of theirs.
pub(crate) fn share(name: &str, tool: &str, both: [f64; 2], unit: &str, most: Option<f64>) -> Result<()> {
    pair(name, tool, both, unit, most.map(|most| (format!("{most} of theirs"), both[0] <= most * both[1])))
}

fn pair(name: &str, tool: &str, both: [f64; 2], unit: &str, goal: Option<(String, bool)>) -> Result<()> {
    let [ours, theirs] = both.map(|value| with_unit(value, unit));
    // Beside nothing at all, a share says nothing.
    let ratio = (both[1] != 0.0).then(|| format!("{:.2} of theirs", both[0] / both[1]));
    let said = ratio.as_ref().map(|ratio| format!(", {ratio}")).unwrap_or_default();
    print(&format!("  {name}: ours {ours}, {tool} {theirs}{said}{}", ending(goal.as_ref())))?;
    let mut report = report();
    let section = report.section();
    section.bars.push(Bar::new(name, tool, both, unit));
    section.rows.push(Row { name: name.to_owned(), ours, theirs: Some((tool.to_owned(), theirs)), ratio, goal });
    Ok(())
}

/// How many of these were at most how large, as a plot, with the median and the value that one in a hundred exceeds.
pub(crate) fn cumulative(title: &str, unit: &str, of: &[(&str, &[f64])]) {
    let lines: Vec<Line> = of.iter().map(|&(name, values)| Line::cumulative(name, unit, values)).collect();
    // What lies far outside would leave no room for the rest.
    let end = of.iter().map(|(_, values)| quantile(values, 0.99)).fold(0.0, f64::max) * 1.25;
    let title = format!("{title}: share of all, in {unit}");
    report().section().lines.push(svg::Lines { title, end, top: 1.0, lines });
}

/// How a count grew over seconds, as a plot.
pub(crate) fn over_time(title: &str, of: Vec<(&str, Vec<f64>)>) {
    let largest = of.iter().map(|(_, moments)| moments.len()).max().unwrap_or(0);
    let end = of.iter().flat_map(|(_, moments)| moments).copied().fold(0.0, f64::max);
    let lines = of.into_iter().map(|(name, moments)| Line::count(name, moments)).collect();
    let title = format!("{title}, by seconds");
    report().section().lines.push(svg::Lines { title, end, top: largest as f64, lines });
}

fn ending(goal: Option<&(String, bool)>) -> String {
    goal.map(|(text, met)| format!("; goal {text}: {}", verdict(*met))).unwrap_or_default()
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn with_unit(value: f64, unit: &str) -> String {
    let value = number(value);
    if unit.is_empty() { value } else { format!("{value} {unit}") }
}

/// Writes the page and its plots into this directory, in place of those that are there. Gives the page's path.
pub(crate) fn write(directory: &Path, commit: &str) -> Result<PathBuf> {
    let report = report();
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    let mut page = format!("# Benchmarks\n\n{}", introduction(commit));
    for failure in &report.failures {
        let _ = writeln!(page, "\n**{} failed**, and its figures are not complete.", escape(failure));
    }
    let has_any = |section: &&Section| !(section.rows.is_empty() && section.notes.is_empty());
    for section in report.sections.iter().filter(has_any) {
        let _ = write!(page, "\n## {}\n", escape(&section.title));
        page += &table(&section.rows);
        for note in &section.notes {
            let _ = write!(page, "\n- {}", escape(note));
        }
        page += if section.notes.is_empty() { "" } else { "\n" };
        let plots = section.lines.iter().map(|lines| (lines.title.clone(), svg::lines(lines)));
        let bars =
            (!section.bars.is_empty()).then(|| (section.title.clone(), svg::bars(&section.title, &section.bars)));
        for (title, plot) in bars.into_iter().chain(plots) {
            let file = free_name(directory, &section.benchmark);
            fs::write(directory.join(&file), plot).with_context(|| format!("cannot write {file}"))?;
            let _ = write!(page, "\n![{}]({file})\n", escape(&title));
        }
    }
    let path = directory.join("report.md");
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn free_name(directory: &Path, benchmark: &str) -> String {
    let names = (1..).map(|number| format!("{benchmark}-{number}.svg"));
    names.into_iter().find(|name| !directory.join(name).exists()).unwrap_or_default()
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = "\n| what | ours | theirs | ratio | goal | |\n|---|---|---|---|---|---|\n".to_owned();
    for row in rows {
        let theirs = row.theirs.as_ref().map(|(tool, value)| format!("{value} ({tool})")).unwrap_or_default();
        let (goal, met) = row.goal.as_ref().map(|(goal, met)| (&goal[..], verdict(*met))).unwrap_or_default();
        let cells = [&row.name, &row.ours, &theirs, row.ratio.as_deref().unwrap_or_default(), goal].map(escape);
        // A goal that is missed must not be passed over.
        let met = if met == "MISSED" { "**MISSED**" } else { met };
        let _ = writeln!(table, "| {} | {met} |", cells.join(" | "));
    }
    table
}

/// Where and when. Nothing of it names the machine or its user.
fn introduction(commit: &str) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        value.map_or("unknown", str::trim).to_owned()
    };
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory = memory.split(' ').next().and_then(|kilobytes| kilobytes.parse().ok()).unwrap_or(0.0) / 1024.0 / 1024.0;
    let kernel = read("/proc/sys/kernel/osrelease");
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    format!(
        "Written by `cargo xtask bench`, which measures what ships and, in the same run, the tool that a user would use instead. \
         Sessions, masker and workspace are measured as code in the program that measures: it is built for speed, where the \
         launcher and the worker are built for size.\n\n\
         | machine | |\n|---|---|\n| processor | {} |\n| cores | {cores} |\n| memory | {memory:.1} GiB |\n| kernel | Linux {} |\n\
         | date | {} |\n| commit | {} |\n",
        escape(&processor),
        escape(kernel.trim()),
        date(today),
        escape(commit),
    )
}

/// The day of these seconds since 1970, by Howard Hinnant's `civil_from_days`.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Counted from March, so that the day of a leap year is the last one.
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// Text for a page of Markdown, in which it shall mean nothing.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' | '`' | '*' | '_' | '|' | '<' | '>' | '[' | ']' | '~' => escaped.extend(['\\', character]),
            '\n' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}
