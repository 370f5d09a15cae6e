//! Plots as SVG. They bring their own background, so that they can be read on any page, and follow whoever prefers it dark.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const STYLE: &str = "<style>\
    rect.page{fill:#fff}text{fill:#1f2328;font:13px sans-serif}text.title{font-size:15px;font-weight:600}\
    text.end{text-anchor:end}text.middle{text-anchor:middle}line{stroke:#d1d9e0}\
    .c0{fill:#0969da}.c1{fill:#8c959f}.c2{fill:#bf8700}.c3{fill:#1a7f37}\
    .l0{stroke:#0969da}.l1{stroke:#8c959f}.l2{stroke:#bf8700}.l3{stroke:#1a7f37}polyline{fill:none;stroke-width:2}\
    @media (prefers-color-scheme:dark){rect.page{fill:#0d1117}text{fill:#e6edf3}line{stroke:#3d444d}\
    .c0{fill:#4493f8}.c2{fill:#d29922}.c3{fill:#3fb950}.l0{stroke:#4493f8}.l2{stroke:#d29922}.l3{stroke:#3fb950}}\
    </style>\n";
/// Colours of lines; one that is beyond them begins anew.
const COLOURS: usize = 4;
/// Points of a line. More than pixels would only make the file larger.
const MAXIMUM_POINTS: usize = 600;

/// Something that was measured of both.
pub(crate) struct Bar {
    name: String,
    tool: String,
    both: [f64; 2],
    unit: String,
}

impl Bar {
    pub(crate) fn new(name: &str, tool: &str, both: [f64; 2], unit: &str) -> Self {
        Self { name: name.to_owned(), tool: tool.to_owned(), both, unit: unit.to_owned() }
    }
}

/// A plot of lines that begin at zero.
pub(crate) struct Lines {
    pub(crate) title: String,
    /// Where the axes end.
    pub(crate) end: f64,
    pub(crate) top: f64,
    pub(crate) lines: Vec<Line>,
}

/// One of them.
pub(crate) struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    /// Points that are marked.
    marks: Vec<(f64, f64)>,
}

impl Line {
    /// The share of all values that are at most so large.
    pub(crate) fn cumulative(name: &str, unit: &str, values: &[f64]) -> Self {
        let (median, p99) = (quantile(values, 0.5), quantile(values, 0.99));
        let name = format!("{name}: median {} {unit}, p99 {} {unit}", number(median), number(p99));
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let share = 1.0 / sorted.len().max(1) as f64;
        Self { name, points: steps(&sorted, share), marks: vec![(median, 0.5), (p99, 0.99)] }
    }

    /// How often something had happened by when.
    pub(crate) fn count(name: &str, mut moments: Vec<f64>) -> Self {
        moments.sort_by(f64::total_cmp);
        Self { name: name.to_owned(), points: steps(&moments, 1.0), marks: vec![] }
    }
}

/// Of values in order: each raises the line by this much.
fn steps(sorted: &[f64], height: f64) -> Vec<(f64, f64)> {
    let every = sorted.len().div_ceil(MAXIMUM_POINTS).max(1);
    let mut points = vec![(0.0, 0.0)];
    for (index, &value) in sorted.iter().enumerate() {
        if index % every == 0 || index + 1 == sorted.len() {
            let below = points[points.len() - 1].1;
            points.extend([(value, below), (value, (index + 1) as f64 * height)]);
        }
    }
    points
}

/// Ours beside theirs, each pair by a measure of its own: there may be seconds and bytes among them.
pub(crate) fn bars(title: &str, bars: &[Bar]) -> String {
    const PAIR: f64 = 74.0;
    const LEFT: f64 = 190.0;
    let mut svg = begin(title, 44.0 + PAIR * bars.len() as f64);
    for (index, bar) in bars.iter().enumerate() {
        let top = 44.0 + PAIR * index as f64;
        text(&mut svg, 16.0, top + 14.0, "", &bar.name);
        let largest = bar.both[0].max(bar.both[1]);
        for (place, (tool, value)) in [("ours", bar.both[0]), (&bar.tool[..], bar.both[1])].into_iter().enumerate() {
            let y = top + 20.0 + 22.0 * place as f64;
            let length = if largest > 0.0 { value / largest * (WIDTH - LEFT - 110.0) } else { 0.0 };
            // What is nearly nothing is still to be seen.
            let length = length.max(1.0);
            text(&mut svg, LEFT - 8.0, y + 13.0, "end", &shortened(tool));
            let _ = writeln!(
                svg,
                "<rect class=\"c{place}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"18\" rx=\"2\"/>"
            );
            let value = format!("{} {}", number(value), bar.unit);
            text(&mut svg, LEFT + length + 6.0, y + 13.0, "", value.trim());
        }
    }
    svg + "</svg>\n"
}

/// Lines, with what each of them is above them.
pub(crate) fn lines(plot: &Lines) -> String {
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 24.0;
    let above = 48.0 + 20.0 * plot.lines.len() as f64;
    let mut svg = begin(&plot.title, above + HEIGHT + 36.0);
    let (end, top) = (plot.end.max(f64::MIN_POSITIVE), plot.top.max(f64::MIN_POSITIVE));
    let x = |value: f64| LEFT + value.min(end) / end * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| above + HEIGHT - value.min(top) / top * HEIGHT;
    for tick in ticks(top) {
        let at = y(tick);
        let _ = writeln!(svg, "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT);
        text(&mut svg, LEFT - 8.0, at + 4.0, "end", &number(tick));
    }
    for tick in ticks(end) {
        text(&mut svg, x(tick), above + HEIGHT + 20.0, "middle", &number(tick));
    }
    for (index, line) in plot.lines.iter().enumerate() {
        let (colour, label) = (index % COLOURS, 48.0 + 20.0 * index as f64);
        let _ = writeln!(
            svg,
            "<rect class=\"c{colour}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"12\" height=\"12\"/>",
            label - 11.0
        );
        text(&mut svg, LEFT + 18.0, label, "", &line.name);
        // What lies beyond the axis is not drawn.
        let shown = line.points.iter().take_while(|point| point.0 <= end);
        let points: Vec<String> = shown.map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = writeln!(svg, "<polyline class=\"l{colour}\" points=\"{}\"/>", points.join(" "));
        for mark in line.marks.iter().filter(|mark| mark.0 <= end) {
            let _ =
                writeln!(svg, "<circle class=\"c{colour}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"/>", x(mark.0), y(mark.1));
        }
    }
    svg + "</svg>\n"
}

/// The value that this share of all values does not exceed; zero if there are none.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let place = (values.len() as f64 * share).ceil() as usize;
    values.get(place.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Three digits that say something, and all of a larger number.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn begin(title: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>{}</title>\n{STYLE}<rect class=\"page\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n",
        escape(title)
    );
    text(&mut svg, 16.0, 26.0, "title", title);
    svg
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
}

/// Some four round numbers from zero on.
fn ticks(end: f64) -> Vec<f64> {
    let rough = end / 4.0;
    let magnitude = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|factor| factor * magnitude).find(|&step| step >= rough);
    let step = step.unwrap_or(rough);
    (0..=4).map(|index| step * f64::from(index)).filter(|&tick| tick <= end * 1.001).collect()
}

/// Tools are named on the left, where there is room for so much.
fn shortened(text: &str) -> String {
    const MOST: usize = 22;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST - 1).chain(['…']).collect() }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
