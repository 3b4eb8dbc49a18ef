//! Cards as other people's drivers describe them, on a machine that remembers what was set.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::card::{Card, queue_of};
use super::plan::{self, Wishes, cores_of_mask, mask_of};
use super::system::System;
use super::{set_up, undo};

const SAVED: &str = "/run/lunaring/tune-ens1f0.json";

/// A machine with a card of 63 queues, 8 of them in use, on memory node 0 with cores 0 to 3.
#[derive(Default)]
struct Machine {
    files: RefCell<BTreeMap<String, String>>,
    /// What `ethtool` sets, by its arguments without the device and the value.
    values: RefCell<BTreeMap<String, String>>,
    /// Everything that was set, in order.
    done: RefCell<Vec<String>>,
    /// Setting anything with this in it fails.
    broken: Option<&'static str>,
    /// The driver knows no setting with this in it.
    lacks: Option<&'static str>,
}

impl Machine {
    fn new() -> Self {
        let machine = Self::default();
        let device = "/sys/class/net/ens1f0";
        machine.file(&format!("{device}/mtu"), "1500");
        machine.file(&format!("{device}/device/uevent"), "DRIVER=ice\nPCI_ID=8086:1592");
        machine.file(&format!("{device}/device/numa_node"), "0");
        machine.file("/sys/devices/system/node/node0/cpulist", "0-3");
        machine.file("/proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456");
        machine.file("/proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t33554432");
        machine.file("/proc/sys/net/ipv4/tcp_ecn", "2");
        machine.file("/proc/1/comm", "systemd");
        machine.file("/proc/77/comm", "irqbalance");
        for (key, value) in [
            ("-L combined", "8"),
            ("-G rx", "512"),
            ("-G tx", "2048"),
            ("-C adaptive-rx", "on"),
            ("-C rx-usecs", "50"),
            ("-K tso", "on"),
            ("-K gro", "off"),
            ("-A rx", "on"),
            ("-A tx", "off"),
            ("-N rx-flow-hash tcp4", "sd"),
        ] {
            machine.values.borrow_mut().insert(key.to_owned(), value.to_owned());
        }
        machine.queues(8);
        machine
    }

    fn file(&self, path: &str, text: &str) {
        self.files.borrow_mut().insert(path.to_owned(), text.to_owned());
    }

    /// The driver makes queues and their interrupts anew, as drivers do.
    fn queues(&self, count: usize) {
        self.files.borrow_mut().retain(|path, _| !path.contains("/irq") && !path.contains("/queues/"));
        let device = "/sys/class/net/ens1f0";
        for number in 0..=count {
            let name = if number == 0 {
                "ice-0000:51:00.0:misc".to_owned()
            } else {
                format!("ice-ens1f0-TxRx-{}", number - 1)
            };
            let irq = 200 + number;
            self.file(&format!("{device}/device/msi_irqs/{irq}"), "msix");
            self.file(&format!("/sys/kernel/irq/{irq}/actions"), &name);
            self.file(&format!("/proc/irq/{irq}/smp_affinity_list"), "0-7");
        }
        for queue in 0..count {
            self.file(&format!("{device}/queues/rx-{queue}/rps_cpus"), "00000000,000000ff");
            self.file(&format!("{device}/queues/tx-{queue}/xps_cpus"), &format!("00000000,{:08x}", 1 << queue));
        }
    }

    fn value(&self, key: &str) -> String {
        self.values.borrow()[key].clone()
    }

    fn everything(&self) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        (self.files.borrow().clone(), self.values.borrow().clone())
    }

    fn told(&self, flag: &str) -> String {
        let value = |key| self.value(key);
        match flag {
            "-l" => format!(
                "Channel parameters for ens1f0:\nPre-set maximums:\nRX:\t\t63\nTX:\t\t63\nOther:\t\t1\nCombined:\t63\n\
                 Current hardware settings:\nRX:\t\t0\nTX:\t\t0\nOther:\t\t1\nCombined:\t{}\n",
                value("-L combined")
            ),
            "-g" => format!(
                "Ring parameters for ens1f0:\nPre-set maximums:\nRX:\t\t8160\nRX Mini:\tn/a\nTX:\t\t8160\n\
                 Current hardware settings:\nRX:\t\t{}\nRX Mini:\tn/a\nTX:\t\t{}\n",
                value("-G rx"),
                value("-G tx")
            ),
            "-c" => format!(
                "Coalesce parameters for ens1f0:\nAdaptive RX: {}  TX: on\nstats-block-usecs:\tn/a\nrx-usecs:\t{}\n\
                 rx-frames:\tn/a\n",
                value("-C adaptive-rx"),
                value("-C rx-usecs")
            ),
            "-k" => format!(
                "Features for ens1f0:\ntcp-segmentation-offload: {}\n\ttx-tcp-segmentation: on\n\
                 generic-receive-offload: {}\nlarge-receive-offload: off [fixed]\n",
                value("-K tso"),
                value("-K gro")
            ),
            "-a" => format!(
                "Pause parameters for ens1f0:\nAutonegotiate:\ton\nRX:\t\t{}\nTX:\t\t{}\n",
                value("-A rx"),
                value("-A tx")
            ),
            _ => unreachable!("{flag}"),
        }
    }
}

impl System for Machine {
    fn read(&self, path: &Path) -> Option<String> {
        self.files.borrow().get(path.to_str().unwrap()).cloned()
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), String> {
        let path = path.to_str().unwrap();
        if self.broken.is_some_and(|broken| path.contains(broken)) {
            return Err("Input/output error".to_owned());
        }
        assert!(self.files.borrow().contains_key(path), "{path} is not there");
        self.file(path, text);
        self.done.borrow_mut().push(format!("{path} {text}"));
        Ok(())
    }

    fn replace(&self, path: &Path, text: &str) -> Result<(), String> {
        if self.broken == Some("/run") {
            return Err("Permission denied".to_owned());
        }
        self.file(path.to_str().unwrap(), text);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), String> {
        self.files.borrow_mut().remove(path.to_str().unwrap());
        Ok(())
    }

    fn list(&self, path: &Path) -> Vec<String> {
        let prefix = format!("{}/", path.display());
        let files = self.files.borrow();
        let below = files.keys().filter_map(|path| path.strip_prefix(&prefix));
        below.map(|rest| rest.split('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn ethtool(&self, words: &[&str]) -> Result<String, String> {
        match words {
            ["-n", _, "rx-flow-hash", "tcp4"] => {
                let letters = self.value("-N rx-flow-hash tcp4");
                let fields = [
                    ('s', "IP SA"),
                    ('d', "IP DA"),
                    ('f', "L4 bytes 0 & 1 [TCP/UDP src port]"),
                    ('n', "L4 bytes 2 & 3"),
                ];
                Ok(fields
                    .iter()
                    .filter(|field| letters.contains(field.0))
                    .map(|field| format!("{}\n", field.1))
                    .collect())
            }
            ["-n", ..] => Err("Cannot get RX network flow hashing options: Operation not supported".to_owned()),
            [flag, _] => Ok(self.told(flag)),
            [flag, _, words @ .., value] => {
                let key = format!("{flag} {}", words.join(" "));
                if self.lacks.is_some_and(|lacks| key.contains(lacks)) {
                    return Err("netlink error: Operation not supported".to_owned());
                }
                if self.broken.is_some_and(|broken| key.contains(broken)) {
                    return Err("netlink error: Invalid argument".to_owned());
                }
                assert!(
                    self.values.borrow_mut().insert(key.clone(), (*value).to_owned()).is_some(),
                    "{key} is no setting"
                );
                self.done.borrow_mut().push(format!("{key} {value}"));
                if key == "-L combined" {
                    self.queues(value.parse().unwrap());
                }
                Ok(String::new())
            }
            _ => unreachable!("{words:?}"),
        }
    }
}

fn wishes(cores: &[usize]) -> Wishes {
    Wishes { cores: cores.to_vec(), mtu: Some(9000), rx_usecs: 8 }
}

#[test]
fn each_queue_interrupts_the_core_of_its_shard_and_everything_can_be_set_back() {
    let machine = Machine::new();
    let before = machine.everything();
    let text = set_up(&machine, "ens1f0", &wishes(&[4, 5, 6]), Some(Path::new(SAVED))).unwrap();
    let file = |path: &str| machine.files.borrow()[path].clone();
    assert_eq!(machine.value("-L combined"), "3", "{text}");
    assert_eq!([201, 202, 203].map(|irq| file(&format!("/proc/irq/{irq}/smp_affinity_list"))), ["4", "5", "6"]);
    assert_eq!(file("/proc/irq/200/smp_affinity_list"), "0-7", "the interrupt of no queue is left alone");
    for queue in 0..3 {
        assert_eq!(file(&format!("/sys/class/net/ens1f0/queues/rx-{queue}/rps_cpus")), "00000000");
        assert_eq!(file(&format!("/sys/class/net/ens1f0/queues/tx-{queue}/xps_cpus")), format!("{:08x}", 16 << queue));
    }
    let set = ["-G rx", "-G tx", "-C adaptive-rx", "-C rx-usecs", "-K tso", "-K gro", "-A rx", "-N rx-flow-hash tcp4"];
    assert_eq!(set.map(|key| machine.value(key)), ["4096", "2048", "off", "8", "on", "on", "off", "sdfn"]);
    assert_eq!(file("/sys/class/net/ens1f0/mtu"), "9000");
    assert_eq!(file("/proc/sys/net/ipv4/tcp_rmem"), "4096 131072 16777216");
    assert_eq!(file("/proc/sys/net/ipv4/tcp_wmem"), "4096\t16384\t33554432", "what is more than enough is left alone");
    assert!(text.contains("irqbalance runs"), "{text}");
    assert!(text.contains("Cores 4,5,6 are far from the card"), "{text}");

    // Once more changes nothing, and the way back still leads to before the first time.
    let done = machine.done.borrow().len();
    let again = set_up(&machine, "ens1f0", &wishes(&[4, 5, 6]), Some(Path::new(SAVED))).unwrap();
    assert_eq!(machine.done.borrow().len(), done, "{again}");
    assert!(again.contains("All that can be set is set"), "{again}");
    set_up(&machine, "ens1f0", &wishes(&[1]), Some(Path::new(SAVED))).unwrap();
    assert_eq!(machine.value("-L combined"), "1");
    undo(&machine, Path::new(SAVED)).unwrap();
    let (mut files, values) = machine.everything();
    files.insert("/proc/sys/net/ipv4/tcp_rmem".to_owned(), "4096\t131072\t6291456".to_owned());
    assert_eq!((files, values), before);
    assert!(undo(&machine, Path::new(SAVED)).unwrap_err().contains("nothing to undo"));
}

#[test]
fn looking_changes_nothing_and_says_what_would_be() {
    let machine = Machine::new();
    let before = machine.everything();
    let text = set_up(&machine, "ens1f0", &wishes(&[0, 1]), None).unwrap();
    assert_eq!(machine.everything(), before);
    for expected in ["ens1f0: ice, 8 of at most 63 queues, on memory node 0 (cores 0-3)", "Nothing was changed"] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(
        text.lines().any(|line| line.split_whitespace().eq(["1", "1", "202", "ice-ens1f0-TxRx-1", "on", "0-7"])),
        "{text}"
    );
    assert!(text.lines().any(|line| line.split_whitespace().eq(["queues", "(combined)", "8", "2"])), "{text}");
    assert!(text.lines().any(|line| line.split_whitespace().eq(["tso", "on", "(as", "it", "is)"])), "{text}");
}

#[test]
fn what_can_not_be_set_is_named_and_keeps_nothing_else() {
    for (broken, complaint) in
        [("-A rx", "pause frames, rx could not be set to off"), ("/proc/irq/202", "interrupt 202")]
    {
        let machine = Machine { broken: Some(broken), ..Machine::new() };
        let why = set_up(&machine, "ens1f0", &wishes(&[0, 1]), Some(Path::new(SAVED))).unwrap_err();
        assert!(why.contains(complaint), "{why}");
        assert_eq!(machine.value("-C rx-usecs"), "8", "the others are set");
        undo(&machine, Path::new(SAVED)).unwrap();
        assert_eq!(machine.value("-C rx-usecs"), "50");
    }
    let machine = Machine { lacks: Some("rx-usecs"), ..Machine::new() };
    let text = set_up(&machine, "ens1f0", &wishes(&[0, 1]), Some(Path::new(SAVED))).unwrap();
    assert!(text.contains("rx-usecs stays 50: this card has no such setting"), "{text}");
    let machine = Machine { broken: Some("/run"), ..Machine::new() };
    let before = machine.everything();
    set_up(&machine, "ens1f0", &wishes(&[0, 1]), Some(Path::new(SAVED))).unwrap_err();
    assert_eq!(machine.everything(), before, "nothing is changed that could not be undone");
    assert!(set_up(&machine, "ens9", &wishes(&[0]), None).unwrap_err().contains("there are ens1f0"));
    assert!(set_up(&machine, "../../proc", &wishes(&[0]), None).unwrap_err().contains("no name"));
}

#[test]
fn a_card_of_fewer_queues_than_shards_takes_what_it_has_and_says_what_that_means() {
    let machine = Machine::new();
    let card = Card::read(&machine, "ens1f0").unwrap();
    let many = wishes(&(0..64).collect::<Vec<_>>());
    assert_eq!(plan::channels(&card, &many)[0].wanted, "63");
    let notes = plan::notes(&machine, &card, &many).join("\n");
    assert!(notes.contains("63 of the 64 queues"), "{notes}");
}

#[test]
fn drivers_name_their_interrupts_in_many_ways() {
    for (name, queue) in [
        ("eth0-TxRx-3", Some(3)),
        ("mlx5_comp12@pci:0000:51:00.0", Some(12)),
        ("mlx5_async0@pci:0000:51:00.0", None),
        ("virtio2-input.0", Some(0)),
        ("virtio2-output.1", Some(1)),
        ("virtio2-config", None),
        ("ice-0000:51:00.0:misc", None),
        ("i40e-eth0-TxRx-7", Some(7)),
        ("i40e-0000:01:00.0:fdir-TxRx-0", None),
        ("ens5-Tx-Rx-1", Some(1)),
        ("ena-mgmnt@pci:0000:00:05.0", None),
        ("bnxt_en-eth0-TxRx-2", Some(2)),
        ("eth4 (queue 5)", Some(5)),
        ("eth1-rxtx-0", Some(0)),
        ("eth1-event-4", None),
        // One interrupt for the whole card.
        ("eth0", Some(0)),
    ] {
        assert_eq!(queue_of(name), queue, "{name}");
    }
}

#[test]
fn masks_are_the_kernels() {
    for (mask, cores) in
        [("00000000", vec![]), ("00000003", vec![0, 1]), ("00000001,80000000,00000002", vec![1, 63, 64])]
    {
        let cores: BTreeSet<usize> = cores.into_iter().collect();
        assert_eq!(cores_of_mask(mask), Some(cores.clone()));
        assert_eq!(mask_of(&cores), mask);
    }
    assert_eq!(cores_of_mask("nonsense"), None);
}
