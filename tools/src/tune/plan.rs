//! What a card should be set to, from what it is and which cores the shards have. Does nothing itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lunaring::shard::placement;
use serde::{Deserialize, Serialize};

use super::card::{Card, QueueMask, affinity_path};
use super::system::System;

/// Slots of the receive ring that hold a burst of whole command windows.
const RX_SLOTS: u32 = 4096;
/// Slots of the transmit ring: fewer hold less of the latency.
const TX_SLOTS: u32 = 1024;
/// What 100 Gbit/s have in flight over a millisecond, and some more.
const TCP_BUFFER_BYTES: u64 = 16 << 20;

/// What the person at the keyboard decides.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The cores of the shards, that of shard 0 first.
    pub cores: Vec<usize>,
    /// The largest frame, where it is to be changed.
    pub mtu: Option<u32>,
    /// Microseconds of coalescing.
    pub rx_usecs: u32,
}

/// How something is set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// The value is written to a file.
    File(PathBuf),
    /// The value is the last argument of `ethtool`.
    Ethtool(Vec<String>),
}

impl Setting {
    /// Whether there is nothing any more to set.
    pub fn is_gone(&self, system: &impl System) -> bool {
        matches!(self, Self::File(path) if system.read(path).is_none())
    }

    /// Set it; the error in words.
    pub fn set(&self, system: &impl System, value: &str) -> Result<(), String> {
        match self {
            Self::File(path) => system.write(path, value),
            Self::Ethtool(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).chain([value]).collect();
                system.ethtool(&words).map(drop)
            }
        }
    }
}

/// One thing that should have a value.
#[derive(Clone, Debug)]
pub struct Step {
    /// For people.
    pub name: String,
    /// How it is set.
    pub setting: Setting,
    /// As it was found.
    pub now: String,
    /// As it should be.
    pub wanted: String,
    /// One of many that the table of queues sums up.
    pub of_a_queue: bool,
}

impl Step {
    /// Whether it has to be taken.
    pub fn differs(&self) -> bool {
        self.now != self.wanted
    }
}

/// The core of a queue. Where a card has more queues than there are shards, they go around.
fn core_of(wishes: &Wishes, queue: usize) -> usize {
    wishes.cores[queue % wishes.cores.len()]
}

fn ethtool(card: &Card, name: &str, flag: &str, words: &[&str], now: &str, wanted: String) -> Step {
    let words = [&[flag, card.device.as_str()], words].concat();
    let setting = Setting::Ethtool(words.into_iter().map(str::to_owned).collect());
    Step { name: name.to_owned(), setting, now: now.to_owned(), wanted, of_a_queue: false }
}

/// The number of queues: as many as shards, as far as the card has them. Other interrupts come of it.
pub fn channels(card: &Card, wishes: &Wishes) -> Vec<Step> {
    let step = |channels: &super::card::Channels| {
        let wanted = wishes.cores.len().min(channels.max);
        let name = format!("queues ({})", channels.word);
        ethtool(card, &name, "-L", &[&channels.word], &channels.now.to_string(), wanted.to_string())
    };
    card.channels.iter().map(step).collect()
}

/// Everything that should have a value, whether it has it or not.
pub fn all(system: &impl System, card: &Card, wishes: &Wishes) -> Vec<Step> {
    let mut steps = channels(card, wishes);
    steps.extend(card.rings.iter().map(|ring| {
        let slots = if ring.word == "rx" { RX_SLOTS } else { TX_SLOTS };
        let wanted = ring.now.max(slots.min(ring.max));
        ethtool(card, &format!("{} ring", ring.word), "-G", &[&ring.word], &ring.now.to_string(), wanted.to_string())
    }));
    steps.extend(card.coalescing.iter().map(|value| {
        let wanted = if value.word == "rx-usecs" { wishes.rx_usecs.to_string() } else { "off".to_owned() };
        ethtool(card, &value.word, "-C", &[&value.word], &value.now, wanted)
    }));
    steps.extend(card.features.iter().map(|value| {
        let wanted = if value.word == "lro" { "off" } else { "on" };
        ethtool(card, &value.word, "-K", &[&value.word], &value.now, wanted.to_owned())
    }));
    steps.extend(card.pause.iter().map(|value| {
        ethtool(card, &format!("pause frames, {}", value.word), "-A", &[&value.word], &value.now, "off".to_owned())
    }));
    steps.extend(card.flow_hash.iter().map(|value| {
        let words = ["rx-flow-hash", value.word.as_str()];
        ethtool(card, &format!("hash of {}", value.word), "-N", &words, &value.now, "sdfn".to_owned())
    }));
    steps.extend(interrupts(card, wishes));
    // Shards receive where the interrupt arrives; steering by software would take packets away from there.
    steps
        .extend(card.steering.iter().filter_map(|mask| mask_step(mask, "steering of receive queue", &BTreeSet::new())));
    steps.extend(card.transmit.iter().filter_map(|mask| {
        let cores = BTreeSet::from([core_of(wishes, mask.queue)]);
        mask_step(mask, "cores that send by queue", &cores)
    }));
    if let Some(mtu) = wishes.mtu {
        let file = Setting::File(Path::new("/sys/class/net").join(&card.device).join("mtu"));
        let (now, wanted) = (card.mtu.to_string(), mtu.to_string());
        steps.push(Step { name: "largest frame".to_owned(), setting: file, now, wanted, of_a_queue: false });
    }
    steps.extend(machine(system));
    steps
}

/// Interrupts of queue k go to the core of shard k.
fn interrupts(card: &Card, wishes: &Wishes) -> impl Iterator<Item = Step> {
    card.interrupts.iter().filter_map(|interrupt| {
        Some(Step {
            name: format!("cores of interrupt {} ({})", interrupt.number, interrupt.name),
            setting: Setting::File(affinity_path(interrupt.number)),
            now: interrupt.cores.clone(),
            wanted: core_of(wishes, interrupt.queue?).to_string(),
            of_a_queue: true,
        })
    })
}

fn mask_step(mask: &QueueMask, name: &str, cores: &BTreeSet<usize>) -> Option<Step> {
    let same = cores_of_mask(&mask.now)? == *cores;
    let wanted = if same { mask.now.clone() } else { mask_of(cores) };
    let name = format!("{name} {}", mask.queue);
    Some(Step { name, setting: Setting::File(mask.path.clone()), now: mask.now.clone(), wanted, of_a_queue: true })
}

/// A mask of cores as the kernel writes it: hexadecimal, a comma after each 32 bits.
pub fn mask_of(cores: &BTreeSet<usize>) -> String {
    let words = cores.last().map_or(1, |last| last / 32 + 1);
    let word = |index: usize| {
        let bits = (0..32).filter(|bit| cores.contains(&(index * 32 + bit)));
        bits.fold(0_u32, |word, bit| word | 1 << bit)
    };
    let texts: Vec<String> = (0..words).rev().map(|index| format!("{:08x}", word(index))).collect();
    texts.join(",")
}

/// The cores of a mask; `None` when it is none.
pub fn cores_of_mask(mask: &str) -> Option<BTreeSet<usize>> {
    let mut cores = BTreeSet::new();
    for (index, word) in mask.trim().split(',').rev().enumerate() {
        let word = u32::from_str_radix(word, 16).ok()?;
        cores.extend((0..32).filter(|bit| word >> bit & 1 == 1).map(|bit| index * 32 + bit));
    }
    Some(cores)
}

/// Settings of the whole machine: buffers that a fast link fills, and notice of congestion instead of loss.
fn machine(system: &impl System) -> Vec<Step> {
    let mut steps = Vec::new();
    for name in ["tcp_rmem", "tcp_wmem"] {
        let path = PathBuf::from(format!("/proc/sys/net/ipv4/{name}"));
        let Some(now) = system.read(&path) else { continue };
        let fields: Vec<u64> = now.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let [least, usual, most] = fields[..] else { continue };
        let step = |now: String, wanted| Step {
            name: format!("{name} (whole machine)"),
            setting: Setting::File(path.clone()),
            now,
            wanted,
            of_a_queue: false,
        };
        steps.push(step(format!("{least} {usual} {most}"), format!("{least} {usual} {}", most.max(TCP_BUFFER_BYTES))));
    }
    let ecn = PathBuf::from("/proc/sys/net/ipv4/tcp_ecn");
    if let Some(now) = system.read(&ecn) {
        let name = "tcp_ecn (whole machine)".to_owned();
        steps.push(Step { name, setting: Setting::File(ecn), now, wanted: "1".to_owned(), of_a_queue: false });
    }
    steps
}

/// The queues, with their cores and interrupts, for people.
pub fn queues(card: &Card, wishes: &Wishes) -> String {
    let count = card.channels.as_ref().map_or(1, |channels| wishes.cores.len().min(channels.max));
    let mut lines = vec![format!("{:<7}{:<7}{}", "queue", "core", "interrupts, and where they go now")];
    for queue in 0..count {
        let of_queue = card.interrupts.iter().filter(|interrupt| interrupt.queue == Some(queue));
        let texts: Vec<String> = of_queue
            .map(|interrupt| format!("{} {} on {}", interrupt.number, interrupt.name, interrupt.cores))
            .collect();
        let texts = if texts.is_empty() { "none yet".to_owned() } else { texts.join(", ") };
        lines.push(format!("{queue:<7}{:<7}{texts}", core_of(wishes, queue)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The settings, for people: what is, and what should be where that differs.
pub fn table(steps: &[Step]) -> String {
    let mut lines = vec![format!("{:<28}{:<26}{}", "setting", "now", "wanted")];
    for step in steps.iter().filter(|step| !step.of_a_queue) {
        let wanted = if step.differs() { step.wanted.as_str() } else { "(as it is)" };
        lines.push(format!("{:<28}{:<26}{wanted}", step.name, step.now));
    }
    let of_queues = steps.iter().filter(|step| step.of_a_queue);
    let differing = of_queues.clone().filter(|step| step.differs()).count();
    lines.push(format!("{:<28}{} of {} to change", "interrupts and queues", differing, of_queues.count()));
    lines.push(String::new());
    lines.join("\n")
}

/// What no setting of the card can mend.
pub fn notes(system: &impl System, card: &Card, wishes: &Wishes) -> Vec<String> {
    let mut notes = Vec::new();
    let max = card.channels.as_ref().map_or(1, |channels| channels.max);
    let (with, without) = wishes.cores.split_at(max.min(wishes.cores.len()));
    if !without.is_empty() {
        notes.push(format!(
            "The card has {max} of the {} queues that the shards need: the others get no connections from it. \
             `lunaring serve --cores {}` starts no more shards than that.",
            wishes.cores.len(),
            list(with)
        ));
    }
    if let Some((node, cores)) = &card.node {
        let every: Vec<usize> = (0..=usize::from(u16::MAX)).collect();
        let near = placement::parse_cores(cores, &every);
        let is_far = |core: &usize| !near.as_ref().is_ok_and(|near| near.contains(core));
        let far: Vec<usize> = wishes.cores.iter().copied().filter(is_far).collect();
        if near.is_ok() && !far.is_empty() {
            notes.push(format!(
                "Cores {} are far from the card, which is on memory node {node} (cores {cores}): shards \
                 there pay for it.",
                list(&far)
            ));
        }
    }
    let comm = |id: &String| system.read(&Path::new("/proc").join(id).join("comm"));
    let is_irqbalance = |id: &String| comm(id).as_deref() == Some("irqbalance");
    let processes = system.list(Path::new("/proc"));
    if processes.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).any(is_irqbalance) {
        notes.push("irqbalance runs and will move the interrupts again: systemctl disable --now irqbalance".to_owned());
    }
    notes
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}
