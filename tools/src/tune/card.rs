//! What a network card is and how it is set: read from `/sys` and from what `ethtool` prints.
//!
//! A card that lacks something (a virtual one has no pause frames) is not an error: that part is empty.

use std::path::{Path, PathBuf};

use super::system::System;

/// The number of receive queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channels {
    /// `combined`, or `rx` where receiving and transmitting queues are counted apart.
    pub word: String,
    /// As it is.
    pub now: usize,
    /// The most the card can have.
    pub max: usize,
}

/// Slots of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingSlots {
    /// `rx` or `tx`.
    pub word: String,
    /// As it is.
    pub now: u32,
    /// The most the card can have.
    pub max: u32,
}

/// A setting of `ethtool` that is one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Its name in `ethtool`'s arguments.
    pub word: String,
    /// As it is.
    pub now: String,
}

/// An interrupt of the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// What the driver calls it.
    pub name: String,
    /// The queue that it is for; `None` for those of no queue.
    pub queue: Option<usize>,
    /// The cores that may get it, as a list.
    pub cores: String,
}

/// A queue's file of cores, a mask in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueMask {
    /// The queue.
    pub queue: usize,
    /// The file.
    pub path: PathBuf,
    /// As it is.
    pub now: String,
}

/// A card, as it was found.
#[derive(Clone, Debug)]
pub struct Card {
    /// The name of the device.
    pub device: String,
    /// Its driver; `?` where nobody says.
    pub driver: String,
    /// The memory node that it is attached to, and that node's cores as a list.
    pub node: Option<(usize, String)>,
    /// Bytes of the largest frame.
    pub mtu: u32,
    /// Receive queues.
    pub channels: Option<Channels>,
    /// Ring sizes.
    pub rings: Vec<RingSlots>,
    /// Interrupt coalescing.
    pub coalescing: Vec<Value>,
    /// Offloads; those that can not be changed are left out.
    pub features: Vec<Value>,
    /// Pause frames.
    pub pause: Vec<Value>,
    /// Which fields of a packet choose its queue, by kind of flow.
    pub flow_hash: Vec<Value>,
    /// Interrupts.
    pub interrupts: Vec<Interrupt>,
    /// Receive packet steering: software moving packets to other cores.
    pub steering: Vec<QueueMask>,
    /// Which cores send by which transmit queue.
    pub transmit: Vec<QueueMask>,
}

impl Card {
    /// Look at a device; fails when there is none of that name or `ethtool` is missing.
    pub fn read(system: &impl System, device: &str) -> Result<Self, String> {
        if device.is_empty() || device.starts_with('.') || device.contains('/') {
            return Err(format!("'{device}' is no name of a network device"));
        }
        let folder = Path::new("/sys/class/net").join(device);
        let Some(mtu) = system.read(&folder.join("mtu")) else {
            let names = system.list(Path::new("/sys/class/net")).join(", ");
            return Err(format!("there is no network device '{device}'; there are {names}"));
        };
        // Every card answers this one; it fails only where ethtool does.
        let features = system.ethtool(&["-k", device])?;
        let told = |flag: &str| system.ethtool(&[flag, device]).unwrap_or_default();
        Ok(Self {
            device: device.to_owned(),
            driver: driver(system, &folder),
            node: node(system, &folder),
            mtu: mtu.parse().unwrap_or(0),
            channels: channels(&told("-l")),
            rings: rings(&told("-g")),
            coalescing: coalescing(&told("-c")),
            features: feature_values(&features),
            pause: pause(&told("-a")),
            flow_hash: ["tcp4", "tcp6"].into_iter().filter_map(|kind| flow_hash(system, device, kind)).collect(),
            interrupts: interrupts(system, &folder),
            steering: masks(system, &folder, "rx-", "rps_cpus"),
            transmit: masks(system, &folder, "tx-", "xps_cpus"),
        })
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let queues = match &self.channels {
            Some(channels) => format!("{} of at most {} queues", channels.now, channels.max),
            None => "one queue or an unknown number".to_owned(),
        };
        let node = match &self.node {
            Some((node, cores)) => format!(", on memory node {node} (cores {cores})"),
            None => String::new(),
        };
        format!("{}: {}, {queues}{node}", self.device, self.driver)
    }
}

fn driver(system: &impl System, folder: &Path) -> String {
    let facts = system.read(&folder.join("device/uevent")).unwrap_or_default();
    facts.lines().find_map(|line| line.strip_prefix("DRIVER=")).unwrap_or("?").to_owned()
}

fn node(system: &impl System, folder: &Path) -> Option<(usize, String)> {
    let node = system.read(&folder.join("device/numa_node"))?.parse().ok()?;
    let cores = system.read(Path::new(&format!("/sys/devices/system/node/node{node}/cpulist")))?;
    Some((node, cores))
}

/// The lines of `ethtool`'s output that have a name and a value.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value.trim()))
}

/// Of two blocks, one of maximums and one of what is set, a number by its name.
fn maximum_and_now<T: std::str::FromStr>(text: &str, name: &str) -> Option<(T, T)> {
    let (maximums, current) = text.split_once("Current hardware settings")?;
    let number = |block| pairs(block).find(|pair| pair.0 == name).and_then(|pair| pair.1.parse().ok());
    Some((number(maximums)?, number(current)?))
}

fn channels(text: &str) -> Option<Channels> {
    [("Combined", "combined"), ("RX", "rx")].into_iter().find_map(|(name, word)| {
        let (max, now) = maximum_and_now(text, name)?;
        (max > 0).then(|| Channels { word: word.to_owned(), now, max })
    })
}

fn rings(text: &str) -> Vec<RingSlots> {
    let ring = |(name, word): (&str, &str)| {
        let (max, now) = maximum_and_now(text, name)?;
        (max > 0).then(|| RingSlots { word: word.to_owned(), now, max })
    };
    [("RX", "rx"), ("TX", "tx")].into_iter().filter_map(ring).collect()
}

fn coalescing(text: &str) -> Vec<Value> {
    let adaptive = text.lines().find_map(|line| line.trim().strip_prefix("Adaptive RX:"));
    let adaptive = adaptive.and_then(|rest| rest.split_whitespace().next()).filter(|now| matches!(*now, "on" | "off"));
    let usecs =
        pairs(text).find(|pair| pair.0 == "rx-usecs").map(|pair| pair.1).filter(|now| now.parse::<u32>().is_ok());
    [("adaptive-rx", adaptive), ("rx-usecs", usecs)].into_iter().filter_map(value).collect()
}

fn value((word, now): (&str, Option<&str>)) -> Option<Value> {
    Some(Value { word: word.to_owned(), now: now?.to_owned() })
}

fn feature_values(text: &str) -> Vec<Value> {
    let names = [
        ("tso", "tcp-segmentation-offload"),
        ("gso", "generic-segmentation-offload"),
        ("gro", "generic-receive-offload"),
        ("lro", "large-receive-offload"),
    ];
    // A feature that can not be changed has "[fixed]" behind its value.
    let now =
        |name| pairs(text).find(|pair| pair.0 == name).map(|pair| pair.1).filter(|now| matches!(*now, "on" | "off"));
    names.into_iter().filter_map(|(word, name)| value((word, now(name)))).collect()
}

fn pause(text: &str) -> Vec<Value> {
    let now =
        |name| pairs(text).find(|pair| pair.0 == name).map(|pair| pair.1).filter(|now| matches!(*now, "on" | "off"));
    [("rx", now("RX")), ("tx", now("TX"))].into_iter().filter_map(value).collect()
}

fn flow_hash(system: &impl System, device: &str, kind: &str) -> Option<Value> {
    let text = system.ethtool(&["-n", device, "rx-flow-hash", kind]).ok()?;
    let fields = [("IP SA", 's'), ("IP DA", 'd'), ("L4 bytes 0 & 1", 'f'), ("L4 bytes 2 & 3", 'n')];
    let letters: String = fields.into_iter().filter(|field| text.contains(field.0)).map(|field| field.1).collect();
    // A card that hashes nothing can not be told what to hash.
    (!letters.is_empty()).then(|| Value { word: kind.to_owned(), now: letters })
}

/// The card's message-signalled interrupts. Those of a virtio card belong to the device that it sits on.
fn interrupts(system: &impl System, folder: &Path) -> Vec<Interrupt> {
    let mut numbers = system.list(&folder.join("device/msi_irqs"));
    if numbers.is_empty() {
        numbers = system.list(&folder.join("device/../msi_irqs"));
    }
    let mut found: Vec<Interrupt> = numbers
        .iter()
        .filter_map(|number| number.parse().ok())
        .filter_map(|number: u32| {
            let name = system.read(Path::new(&format!("/sys/kernel/irq/{number}/actions")))?;
            let cores = system.read(&affinity_path(number))?;
            (!name.is_empty()).then(|| Interrupt { number, queue: queue_of(&name), name, cores })
        })
        .collect();
    found.sort_by_key(|interrupt| interrupt.number);
    found
}

/// The file that says which cores may get an interrupt.
pub fn affinity_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/proc/irq/{number}/smp_affinity_list"))
}

/// The queue that an interrupt's name speaks of: drivers end it with the number, and call others by what they are for.
pub fn queue_of(name: &str) -> Option<usize> {
    const OTHERS: [&str; 12] =
        ["config", "async", "ctrl", "control", "cmd", "fdir", "misc", "event", "mgmnt", "page", "link", "other"];
    let name = name.split('@').next().unwrap_or(name).to_ascii_lowercase();
    if OTHERS.iter().any(|other| name.contains(other)) {
        return None;
    }
    let name = name.trim_end_matches(|c: char| !c.is_ascii_digit());
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().ok()
}

fn masks(system: &impl System, folder: &Path, prefix: &str, file: &str) -> Vec<QueueMask> {
    let queues = folder.join("queues");
    let mut found: Vec<QueueMask> = system
        .list(&queues)
        .iter()
        .filter_map(|name| {
            let queue = name.strip_prefix(prefix)?.parse().ok()?;
            let path = queues.join(name).join(file);
            // A device of one queue has the file but nothing to choose from: reading it fails.
            system.read(&path).map(|now| QueueMask { queue, path, now })
        })
        .collect();
    found.sort_by_key(|mask| mask.queue);
    found
}
