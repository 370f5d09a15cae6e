//! A picture of a terminal in which lines appear at their time: an SVG that browsers play again and again, and that shows the
//! end where nothing moves.

use std::fmt::Write as _;
use std::time::Duration;

use super::Line;

/// Characters in a row; longer lines go on in the next one.
const COLUMNS: usize = 118;
/// Rows that are seen at once. Before more appear, the first ones leave.
const ROWS: usize = 36;
/// For how long the end is seen before it begins again.
const HOLD: Duration = Duration::from_secs(8);
/// Pixels from row to row, around the rows, and of a character in the usual fonts of fixed width.
const HEIGHT: f64 = 18.0;
const MARGIN: f64 = 16.0;
const WIDTH: f64 = 7.83;

/// Draws it.
pub(crate) fn draw(title: &str, lines: &[Line]) -> String {
    let rows = wrapped(lines);
    let seen = rows.len().min(ROWS);
    let (width, height) = (COLUMNS as f64 * WIDTH + 2.0 * MARGIN, seen as f64 * HEIGHT + 2.0 * MARGIN);
    let whole = rows.last().map_or(HOLD, |row| row.at + HOLD);
    let percent = |at: Duration| 100.0 * at.as_secs_f64() / whole.as_secs_f64();
    let left = |count: usize| -(count.saturating_sub(ROWS) as f64) * HEIGHT;

    let (mut moves, mut appearances, mut texts) = (String::new(), String::new(), String::new());
    let mut present = 0.0;
    for (index, row) in rows.iter().enumerate() {
        let at = percent(row.at);
        // Writing to a string does not fail.
        let _ = write!(appearances, "@keyframes l{index}{{0%,{at:.3}%{{opacity:0}}{at:.3}%,100%{{opacity:1}}}}");
        let baseline = (index + 1) as f64 * HEIGHT - 4.0;
        let class = if row.is_typed { " class=\"typed\"" } else { "" };
        let text = escaped(&row.text);
        let _ = writeln!(texts, "<text{class} y=\"{baseline}\" style=\"animation-name:l{index}\">{text}</text>");
        let position = left(index + 1);
        if position != present {
            let _ = write!(
                moves,
                "{at:.3}%{{transform:translateY({present}px)}}{at:.3}%{{transform:translateY({position}px)}}"
            );
            present = position;
        }
    }
    let end = left(rows.len());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n\
         <title>{}</title>\n\
         <style>\n\
         text{{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d6dae0;white-space:pre;\
         animation:{:.3}s step-end infinite}}\n\
         .typed{{fill:#7ee0a1;font-weight:bold}}\n\
         .rows{{transform:translateY({end}px);animation:rows {:.3}s step-end infinite}}\n\
         @keyframes rows{{0%{{transform:translateY(0)}}{moves}100%{{transform:translateY({end}px)}}}}\n\
         {appearances}\n\
         @media (prefers-reduced-motion:reduce){{text,.rows{{animation:none}}}}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#14181f\"/>\n\
         <svg x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{:.0}\" height=\"{:.0}\"><g class=\"rows\">\n{texts}</g></svg>\n\
         </svg>\n",
        escaped(title),
        whole.as_secs_f64(),
        whole.as_secs_f64(),
        width - 2.0 * MARGIN,
        height - 2.0 * MARGIN,
    )
}

fn wrapped(lines: &[Line]) -> Vec<Line> {
    let mut rows = vec![];
    for line in lines {
        let characters: Vec<char> = line.text.chars().collect();
        let mut parts: Vec<String> = characters.chunks(COLUMNS).map(|part| part.iter().collect()).collect();
        if parts.is_empty() {
            parts.push(String::new());
        }
        rows.extend(parts.into_iter().map(|text| Line { text, ..line.clone() }));
    }
    rows
}

/// As text of XML, which has no control characters.
fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.chars().filter(|character| !character.is_control()).collect()
}
