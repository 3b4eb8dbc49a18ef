//! What a server says when it has started.

use serde_json::Value;

use super::table::properties;
use crate::units::HumanBytes;

/// What is served and how, in a few lines, or as one line of JSON.
pub fn serving(resources: &Value, json: bool) -> String {
    if json {
        return resources.to_string();
    }
    let about = &resources["about"];
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let cores: Vec<u64> = about["cores"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let shards = match cores.len() {
        1 => format!("1, on CPU {}", ranges(&cores)),
        many => format!("{many}, on CPUs {}", ranges(&cores)),
    };
    let mut rows = vec![
        ("kernel", word(&about["io_uring"])),
        ("shards", shards),
        ("state", word(&about["state"])),
        ("control", word(&resources["socket"])),
        ("portals", portals(&resources["portals"])),
        ("disks", disks(&resources["disks"])),
        ("targets", targets(&resources["targets"])),
    ];
    for disk in resources["disks"].as_array().into_iter().flatten() {
        let name = word(&disk["name"]);
        if let Some(reason) = disk["reason"].as_str() {
            rows.push(("warning", format!("disk '{name}' is {}: {reason}", word(&disk["state"]))));
        }
        for note in disk["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            rows.push(("note", format!("disk '{name}': {note}")));
        }
    }
    for portal in resources["portals"].as_array().into_iter().flatten() {
        if let Some(reason) = portal["reason"].as_str() {
            rows.push(("warning", reason.to_owned()));
        }
    }
    format!("Lunaring {} is serving. Ctrl-C ends it.\n{}", word(&about["version"]), properties(&rows))
}

/// How to reach a target with common initiators, to paste.
pub fn connecting(portal: &str, iqn: &str) -> String {
    // Where a server listens on every address, this machine reaches it on its own.
    let reached = portal.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]");
    format!(
        "To connect, paste for example:\n  \
         iscsi-ls -s iscsi://{reached}\n  \
         qemu-img info iscsi://{reached}/{iqn}/0\n  \
         qemu-img convert -n -O raw IMAGE iscsi://{reached}/{iqn}/0\n  \
         iscsiadm -m discovery -t sendtargets -p {reached}\n  \
         iscsiadm -m node -T {iqn} -p {reached} --login"
    )
}

fn portals(portals: &Value) -> String {
    let listening = portals.as_array().into_iter().flatten().filter(|portal| portal["listening"] == true);
    let addresses: Vec<&str> = listening.filter_map(|portal| portal["address"].as_str()).collect();
    match addresses.len() {
        0 => "none; listen with 'lunaring portal add 0.0.0.0:3260'".to_owned(),
        1..=4 => addresses.join(", "),
        many => format!("{}, and {} more", addresses.iter().take(3).copied().collect::<Vec<_>>().join(", "), many - 3),
    }
}

fn disks(disks: &Value) -> String {
    let disks: Vec<&Value> = disks.as_array().into_iter().flatten().collect();
    let bytes = disks.iter().filter_map(|disk| disk["size_bytes"].as_u64()).fold(0, u64::saturating_add);
    match disks.as_slice() {
        [] => "none; create one with 'lunaring disk create NAME --size SIZE'".to_owned(),
        [disk] => {
            let file = disk["file"].as_str().map(|file| format!(", {file}")).unwrap_or_default();
            let (name, format) = (&disk["name"], &disk["format"]);
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{}: {} {}{file}", word(name), HumanBytes(bytes), word(format))
        }
        many => format!("{} with {}", many.len(), HumanBytes(bytes)),
    }
}

fn targets(targets: &Value) -> String {
    let targets: Vec<&str> =
        targets.as_array().into_iter().flatten().filter_map(|target| target["iqn"].as_str()).collect();
    match targets.as_slice() {
        [] => "none; create one with 'lunaring target create NAME'".to_owned(),
        [a] => (*a).to_owned(),
        [a, b] => format!("{a}, {b}"),
        [a, b, rest @ ..] => format!("{a}, {b}, and {} more", rest.len()),
    }
}

/// Numbers as a list with ranges: `0,2-5`.
fn ranges(numbers: &[u64]) -> String {
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => parts.push((*number, *number)),
        }
    }
    let part = |(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_shown_as_they_are_written() {
        assert_eq!(ranges(&[0, 2, 3, 4, 7]), "0,2-4,7");
        assert_eq!(ranges(&[1]), "1");
    }

    #[test]
    fn lines_to_paste_reach_this_machine() {
        let lines = connecting("0.0.0.0:3261", "iqn.2026-11.io.lunaring:demo");
        assert!(lines.contains("iscsi-ls -s iscsi://127.0.0.1:3261\n"), "{lines}");
    }
}
