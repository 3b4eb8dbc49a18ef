//! Writes the table of `iscsi-test-cu` from a run of all configurations: few rows for each test, reasons kept.

use crate::iscsi_test_cu::{Configuration, Finding};

const HEAD: &str = "\
# libiscsi's iscsi-test-cu 1.20: test, where, verdict, reason. The first row of a test that fits a configuration holds.
# Where: * or words joined by +, of vhdx memory raw, 512 4096, one-path two-paths, no-digest header-digest.
# ReadOnly runs on a read-only mapping, iSCSICHAP on a target that demands CHAP, Sanitize.Reset on a null disk.
# How to write it anew: iscsi_test_cu.rs.
";

/// Test, place, verdict, reason.
type Row<'a> = (&'a str, &'a str, &'a str, &'a str);

/// The table's text. The reason of an old row with the same test and verdict is kept: people write them better.
pub fn write_table(names: &[String], all: &[Finding], old: &[Row<'_>]) -> String {
    let mut text = HEAD.to_owned();
    let mut names: Vec<&String> = names.iter().collect();
    names.sort();
    for test in names {
        let found: Vec<&Finding> = all.iter().filter(|finding| finding.test == *test).collect();
        for (place, verdict) in rows(&found) {
            let kept = old.iter().find(|row| row.0 == test && row.2 == verdict).map(|row| row.3);
            let said = found.iter().find(|finding| finding.verdict == verdict && !finding.why.is_empty());
            let reason = match (verdict, kept) {
                ("pass", _) => "",
                (_, Some(kept)) => kept,
                _ => said.map_or("no reason was given", |finding| finding.why.as_str()),
            };
            text = text + test + "\t" + &place + "\t" + verdict + "\t" + reason + "\n";
        }
    }
    text
}

/// Exceptions first, the most frequent verdict last, for all the rest.
fn rows(found: &[&Finding]) -> Vec<(String, &'static str)> {
    let count = |verdict: &str| found.iter().filter(|finding| finding.verdict == verdict).count();
    let most = ["pass", "skip", "fail"].into_iter().max_by_key(|verdict| count(verdict)).unwrap_or("pass");
    let mut rows: Vec<(String, &'static str)> = vec![];
    for finding in found.iter().filter(|finding| finding.verdict != most) {
        if rows.iter().any(|(place, _)| finding.configuration.matches(place)) {
            continue;
        }
        rows.push((widest(finding, found), finding.verdict));
    }
    rows.push(("*".to_owned(), most));
    rows
}

/// The fewest words of a finding's configuration that name only findings of its verdict.
fn widest(finding: &Finding, found: &[&Finding]) -> String {
    let name = finding.configuration.name();
    let words: Vec<&str> = name.split('+').collect();
    let mut choices: Vec<Vec<&str>> = (1u32..1 << words.len())
        .map(|bits| (0..words.len()).filter(|at| bits >> at & 1 == 1).map(|at| words[at]).collect())
        .collect();
    choices.sort_by_key(Vec::len);
    let agrees = |place: &str| {
        found.iter().filter(|other| other.configuration.matches(place)).all(|other| other.verdict == finding.verdict)
    };
    choices.into_iter().map(|choice| choice.join("+")).find(|place| agrees(place)).unwrap_or(name)
}

#[test]
fn few_rows_say_all() {
    let finding = |configuration: Configuration| Finding {
        test: "A.B".to_owned(),
        configuration,
        verdict: if configuration.matches("memory+4096") { "skip" } else { "pass" },
        why: "it is so".to_owned(),
    };
    let all: Vec<Finding> = Configuration::all().into_iter().map(finding).collect();
    let text = write_table(&["A.B".to_owned()], &all, &[]);
    assert_eq!(text.strip_prefix(HEAD), Some("A.B\tmemory+4096\tskip\tit is so\nA.B\t*\tpass\t\n"));
    let kept = write_table(&["A.B".to_owned()], &all, &[("A.B", "*", "skip", "better said")]);
    assert!(kept.contains("memory+4096\tskip\tbetter said"));
}
