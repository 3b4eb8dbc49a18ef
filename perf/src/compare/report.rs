//! A page of plots that needs nothing but itself: cost of an I/O by workload, latency distributions, history.

use std::fmt::Write;
use std::path::Path;

use super::record::Record;
use super::{Cell, Check};

/// Of contenders, in the order in which they appear.
const COLOURS: [&str; 8] = ["#777777", "#1b6ac9", "#d1495b", "#2e8b57", "#e09f3e", "#7b4fa6", "#00798c", "#a05c3b"];
/// Runs in the history plot.
const HISTORY_MAX: usize = 60;
const WIDTH: f64 = 900.0;
const LEFT: f64 = 190.0;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}\
    h1,h2{font-weight:600}svg{width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:#333}\
    table{border-collapse:collapse;width:100%;font-size:13px}td,th{padding:2px 8px;text-align:right;\
    border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}.missed{color:#b00020;font-weight:600}";

/// Draw the last run and the history of all.
pub(super) fn write(path: &Path, history: &[Record]) -> Result<(), String> {
    let Some(last) = history.last() else { return Ok(()) };
    std::fs::write(path, page(last, history)).map_err(|e| format!("{}: {e}", path.display()))
}

fn page(last: &Record, history: &[Record]) -> String {
    let mut html = String::new();
    let _ = write!(
        html,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Lunaring, measured</title>\
        <style>{STYLE}</style><h1>Lunaring, measured</h1><p>{} &middot; commit {} &middot; {} &middot; Linux {} \
        &middot; {} rounds of {} s &middot; load before the run {:.1}{}</p>",
        date(last.at),
        escape(&last.commit),
        escape(&last.processor),
        escape(&last.kernel),
        last.rounds,
        last.seconds,
        last.load_before,
        if last.quick { " &middot; <b>a quick trial: no figures to quote</b>" } else { "" },
    );
    if !last.checks.is_empty() {
        html.push_str("<h2>What is owed</h2>");
        owed(&mut html, &last.checks);
    }
    html.push_str("<h2>CPU time of the server per I/O</h2>");
    let workloads = workloads(last);
    for cells in &workloads {
        bars(&mut html, cells);
    }
    html.push_str("<h2>Latency</h2><p>Share of I/Os that took longer, and how long: both axes logarithmic.</p>");
    for cells in &workloads {
        distributions(&mut html, cells);
    }
    html.push_str("<h2>History</h2><p>Cost of 4 KiB reads and writes beside the bare reference of the same run.</p>");
    course(&mut html, history);
    html.push_str("</html>\n");
    html
}

/// The cells of each workload, in order.
fn workloads(record: &Record) -> Vec<Vec<&Cell>> {
    let mut groups: Vec<Vec<&Cell>> = vec![];
    for cell in &record.cells {
        match groups.iter_mut().find(|group| group[0].workload == cell.workload) {
            Some(group) => group.push(cell),
            None => groups.push(vec![cell]),
        }
    }
    groups
}

fn owed(html: &mut String, checks: &[Check]) {
    html.push_str("<table><tr><th>what</th><th>found</th><th>at most</th><th>unit</th><th></th></tr>");
    for check in checks {
        let (class, word) = if check.holds { ("", "holds") } else { (" class=\"missed\"", "missed") };
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{}</td><td{class}>{word}</td></tr>",
            escape(&check.what),
            check.figure,
            check.bound,
            escape(&check.unit)
        );
    }
    html.push_str("</table>");
}

/// One bar for each contender: user and system beside each other.
fn bars(html: &mut String, cells: &[&Cell]) {
    let longest = cells.iter().filter_map(|cell| cell.cpu_us).fold(0.0, f64::max);
    if longest <= 0.0 {
        return;
    }
    let height = 24.0 + 22.0 * cells.len() as f64;
    let _ = write!(html, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    let _ = write!(html, "<text x=\"0\" y=\"14\" font-weight=\"600\">{}</text>", escape(&cells[0].workload));
    for (number, cell) in cells.iter().enumerate() {
        let Some(cost) = cell.cpu_us else { continue };
        let y = 22.0 + 22.0 * number as f64;
        let long = (WIDTH - LEFT - 150.0) * cost / longest;
        // Clock ticks are coarse: they give the share, the scheduler's nanoseconds the whole.
        let (user, system) = (cell.user_us.unwrap_or(0.0), cell.system_us.unwrap_or(0.0));
        let user_long = if user + system > 0.0 { long * user / (user + system) } else { 0.0 };
        let colour = COLOURS[number % COLOURS.len()];
        let _ = write!(
            html,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
            <rect x=\"{LEFT}\" y=\"{y}\" width=\"{long:.1}\" height=\"16\" fill=\"{colour}\" opacity=\"0.55\"/>\
            <rect x=\"{LEFT}\" y=\"{y}\" width=\"{user_long:.1}\" height=\"16\" fill=\"{colour}\"/>\
            <text x=\"{:.1}\" y=\"{}\">{cost:.2} &#181;s{}</text>",
            LEFT - 8.0,
            y + 13.0,
            escape(&cell.contender),
            LEFT + long + 6.0,
            y + 13.0,
            cell.ratio.map_or(String::new(), |ratio| format!(", {ratio:.2} &#215;")),
        );
    }
    html.push_str("</svg>");
}

/// A plot's frame: what x and y mean, and where they begin and end, as powers of ten.
struct Axes {
    height: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn x(&self, value: f64) -> f64 {
        60.0 + (WIDTH - 260.0) * (value - self.x.0) / (self.x.1 - self.x.0).max(1e-9)
    }

    fn y(&self, value: f64) -> f64 {
        self.height - 30.0 - (self.height - 60.0) * (value - self.y.0) / (self.y.1 - self.y.0).max(1e-9)
    }

    fn line(&self, html: &mut String, points: &[(f64, f64)], colour: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", self.x(*x), self.y(*y))).collect();
        let _ = write!(
            html,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            points.join(" ")
        );
    }

    fn key(&self, html: &mut String, number: usize, label: &str, colour: &str) {
        let y = 34.0 + 17.0 * number as f64;
        let x = WIDTH - 190.0;
        let _ = write!(
            html,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"4\" fill=\"{colour}\"/>\
            <text x=\"{}\" y=\"{y}\">{}</text>",
            y - 6.0,
            x + 18.0,
            escape(label)
        );
    }

    fn rule(&self, html: &mut String, y: f64, label: &str) {
        let _ = write!(
            html,
            "<line x1=\"60\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
            <text x=\"54\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - 200.0,
            self.y(y),
            self.y(y),
            self.y(y) + 4.0
        );
    }
}

fn distributions(html: &mut String, cells: &[&Cell]) {
    let latencies = || cells.iter().flat_map(|cell| cell.curve.iter().map(|(_, us)| us.max(0.1).log10()));
    let (low, high) = latencies().fold((f64::MAX, f64::MIN), |(low, high), us| (low.min(us), high.max(us)));
    if low > high {
        return;
    }
    let axes = Axes { height: 300.0, x: (0.0, 5.0), y: (low.floor(), high.ceil().max(low.floor() + 1.0)) };
    let _ = write!(html, "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", axes.height);
    let _ = write!(html, "<text x=\"0\" y=\"14\" font-weight=\"600\">{}</text>", escape(&cells[0].workload));
    for power in axes.y.0 as i32..=axes.y.1 as i32 {
        let us = 10f64.powi(power);
        let label = if us >= 1000.0 { format!("{} ms", us / 1000.0) } else { format!("{us} &#181;s") };
        axes.rule(html, f64::from(power), &label);
    }
    for (step, label) in ["all", "10 %", "1 %", "0.1 %", "0.01 %", "0.001 %"].iter().enumerate() {
        let (x, y) = (axes.x(step as f64), axes.height - 10.0);
        let _ = write!(html, "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>");
    }
    for (number, cell) in cells.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let share = |share: f64| -(1.0 - share).max(1e-9).log10();
        let points: Vec<(f64, f64)> =
            cell.curve.iter().map(|(at, us)| (share(*at).clamp(0.0, 5.0), us.max(0.1).log10())).collect();
        axes.line(html, &points, colour);
        axes.key(html, number, &cell.contender, colour);
    }
    html.push_str("</svg>");
}

/// How the ratios to the reference went, run after run.
fn course(html: &mut String, history: &[Record]) {
    let runs: Vec<&Record> = history.iter().filter(|record| !record.quick).collect();
    let runs = &runs[runs.len().saturating_sub(HISTORY_MAX)..];
    let lines = [
        ("read-4k", "null"),
        ("read-4k", "memory"),
        ("write-4k", "null"),
        ("write-4k", "memory"),
        ("file-read-4k", "raw"),
        ("file-read-4k", "vhdx"),
        ("file-write-4k", "vhdx"),
    ];
    let ratio = |record: &Record, (workload, contender): (&str, &str)| {
        record.cells.iter().find(|c| c.workload == workload && c.contender == contender)?.ratio
    };
    let all = runs.iter().flat_map(|record| lines.iter().filter_map(|line| ratio(record, *line)));
    let highest = all.fold(0.0, f64::max);
    if highest <= 0.0 {
        html.push_str("<p>No run with figures yet.</p>");
        return;
    }
    let axes = Axes { height: 320.0, x: (0.0, (runs.len() - 1).max(1) as f64), y: (0.0, highest * 1.1) };
    let _ = write!(html, "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\">", axes.height);
    for step in 0..=highest.ceil() as u32 {
        axes.rule(html, f64::from(step), &format!("{step} &#215;"));
    }
    for (number, line) in lines.iter().enumerate() {
        let point = |(at, record): (usize, &&Record)| Some((at as f64, ratio(record, *line)?));
        let points: Vec<(f64, f64)> = runs.iter().enumerate().filter_map(point).collect();
        let colour = COLOURS[(number + 1) % COLOURS.len()];
        axes.line(html, &points, colour);
        for (x, y) in &points {
            let (x, y) = (axes.x(*x), axes.y(*y));
            let _ = write!(html, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>");
        }
        axes.key(html, number, &format!("{}, {}", line.0, line.1), colour);
    }
    html.push_str("</svg><table><tr><th>run</th><th>commit</th><th>missed</th></tr>");
    for record in runs.iter().rev() {
        let missed = record.checks.iter().filter(|check| !check.holds).count();
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{missed} of {}</td></tr>",
            date(record.at),
            escape(&record.commit),
            record.checks.len()
        );
    }
    html.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// Days and minutes of UTC from seconds since 1970 (the proleptic Gregorian calendar).
fn date(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut left) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", left + 1, second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // As `date -u -d @N` prints them.
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59 UTC");
    }
}
