//! The plots of `cargo xtask bench`.

#[path = "bench/svg.rs"]
mod svg;

use svg::{Bar, Line, Lines, bars, lines, number, quantile};

/// Whether each element that begins also ends, and no `&` is without a name. Names in a plot could end it early.
fn is_well_formed(document: &str) -> bool {
    let mut open = vec![];
    for part in document.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("tags end");
        let entities =
            text.split('&').skip(1).all(|entity| entity.split_once(';').is_some_and(|(name, _)| name.len() < 6));
        let name = tag.split([' ', '/']).find(|name| !name.is_empty()).expect("tags have a name");
        if !entities || tag.starts_with('/') && open.pop() != Some(name) {
            return false;
        }
        if !tag.starts_with('/') && !tag.ends_with('/') {
            open.push(name);
        }
    }
    open.is_empty()
}

#[test]
fn whatever_a_tool_is_called_is_text() {
    let plot = bars("a < b & c", &[Bar::new("</text><script>", "tar | \"gzip\"", [1.0, 4.0], "s")]);
    assert!(is_well_formed(&plot), "{plot}");
    assert!(!plot.contains("<script>") && plot.contains("a &lt; b &amp; c"), "{plot}");
    let plot = lines(&Lines { title: "</svg>".into(), end: 1.0, top: 1.0, lines: vec![Line::count("<", vec![0.5])] });
    assert!(is_well_formed(&plot) && plot.contains("&lt;/svg&gt;"), "{plot}");
}

/// Nothing was measured, or nothing takes any time.
#[test]
fn a_plot_of_nothing_is_one() {
    let of_nothing = || vec![Line::cumulative("none", "ms", &[]), Line::count("none", vec![])];
    for plot in [
        lines(&Lines { title: String::new(), end: 0.0, top: 0.0, lines: of_nothing() }),
        bars("", &[Bar::new("", "", [0.0, 0.0], "")]),
    ] {
        assert!(is_well_formed(&plot) && !plot.contains("NaN") && !plot.contains("inf"), "{plot}");
    }
}

#[test]
fn a_cumulative_plot_says_and_marks_median_and_p99() {
    let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
    assert_eq!([0.5, 0.99, 1.0].map(|share| quantile(&values, share)), [100.0, 198.0, 200.0]);
    let plot = lines(&Lines {
        title: "latency".into(),
        end: 250.0,
        top: 1.0,
        lines: vec![Line::cumulative("ours", "ms", &values)],
    });
    assert!(plot.contains("ours: median 100 ms, p99 198 ms"), "{plot}");
    assert_eq!(plot.matches("<circle").count(), 2, "{plot}");
}

#[test]
fn numbers_have_three_digits_that_say_something() {
    assert_eq!([0.0, 7.0, 0.1234, 1.234, 12.34, 1234.4].map(number), ["0", "7", "0.123", "1.23", "12.3", "1234"]);
}
