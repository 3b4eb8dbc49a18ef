//! Commands on targets: their logical units, access rules and authentication.

use std::collections::BTreeMap;

use super::api;
use super::config::{AuthConfig, Config, LunConfig, TargetConfig, check_lun, check_name};
use super::controller::Controller;
use super::crash::step;
use super::error::Refused;
use crate::iscsi::directory::AccessRule;
use crate::iscsi::names::IscsiName;
use crate::limits::LUNS_PER_TARGET_MAX;

/// What a target's iSCSI name starts with when nobody chose one.
pub const IQN_PREFIX: &str = "iqn.2026-11.io.lunaring:";

impl Controller {
    /// Create a target. Nobody may log in until somebody is allowed.
    pub async fn target_new(&mut self, new: api::NewTarget) -> Result<(), Refused> {
        check_name("target", &new.name)?;
        if self.config.targets.contains_key(&new.name) {
            return Err(Refused::conflict(format!("there is a target '{}' already; choose another name", new.name)));
        }
        let iqn = new.iqn.unwrap_or_else(|| format!("{IQN_PREFIX}{}", new.name.replace('_', "-")));
        let iqn = IscsiName::new(&iqn).map_err(Refused::invalid)?.as_str().to_owned();
        let target = TargetConfig { iqn, ..TargetConfig::default() };
        let mut config = self.config.clone();
        config.targets.insert(new.name, target);
        self.commit(config).await
    }

    /// Delete a target. Its sessions are dropped.
    pub async fn target_delete(&mut self, target: &str) -> Result<(), Refused> {
        let name = target_name(&self.config, target)?;
        let mut config = self.config.clone();
        config.targets.remove(&name);
        self.commit(config).await
    }

    /// Put a disk behind a logical unit number; gives the number.
    pub async fn target_map(&mut self, target: &str, new: api::NewLun) -> Result<u16, Refused> {
        let mut config = self.config.clone();
        if !config.disks.contains_key(&new.disk) {
            return Err(Refused::not_found(format!("there is no disk '{}'; see 'lunaring disk list'", new.disk)));
        }
        let (name, target) = target_of(&mut config, target)?;
        let rule = new.only_for.as_deref().map(canonical).transpose()?;
        let seen_by = rule.as_ref().map_or(String::new(), |rule| format!(" for {rule}"));
        let luns = match rule {
            Some(rule) => target.luns_for.entry(rule).or_default(),
            None => &mut target.luns,
        };
        let lun = match new.lun {
            Some(lun) => lun,
            None => first_free(luns)?,
        };
        check_lun(lun)?;
        if let Some(taken) = luns.get(&lun) {
            return Err(Refused::conflict(format!(
                "LUN {lun} of target '{name}'{seen_by} is disk '{}' already; choose another with --lun, or unmap that \
                 one first",
                taken.disk
            )));
        }
        if let Some((lun, _)) = luns.iter().find(|(_, lun)| lun.disk == new.disk) {
            return Err(Refused::conflict(format!(
                "disk '{}' is LUN {lun} of target '{name}'{seen_by} already",
                new.disk
            )));
        }
        let written = self.config.disks.get(&new.disk).filter(|disk| !disk.read_only);
        let children = written.and_then(|disk| disk.file.as_deref());
        let children = children.map_or_else(Vec::new, |file| self.children_of(file, &new.disk));
        if !new.read_only && !children.is_empty() {
            return Err(Refused::conflict(format!(
                "disk '{}' is the parent of {}, so it must not change; map it with --read-only",
                new.disk,
                children.join(", ")
            )));
        }
        luns.insert(lun, LunConfig { disk: new.disk, read_only: new.read_only });
        self.commit(config).await?;
        Ok(lun)
    }

    /// Take a logical unit away: the one that everybody sees, or the one of a rule.
    pub async fn target_unmap(&mut self, target: &str, lun: u16, only_for: Option<&str>) -> Result<(), Refused> {
        let mut config = self.config.clone();
        let (name, target) = target_of(&mut config, target)?;
        let rule = only_for.map(canonical).transpose()?;
        let luns = match &rule {
            Some(rule) => target.luns_for.get_mut(rule),
            None => Some(&mut target.luns),
        };
        if luns.and_then(|luns| luns.remove(&lun)).is_none() {
            let seen_by = rule.map_or(String::new(), |rule| format!(" for {rule}"));
            let others = target.all_luns().filter(|(_, number, _)| *number == lun).filter_map(|(rule, ..)| rule);
            let others: Vec<String> = others.map(|rule| format!("--for {rule}")).collect();
            let hint = if others.is_empty() { String::new() } else { format!(" (there is one {})", others.join(", ")) };
            return Err(Refused::not_found(format!(
                "target '{name}' has no LUN {lun}{seen_by}{hint}; see 'lunaring target show {name}'"
            )));
        }
        target.luns_for.retain(|_, luns| !luns.is_empty());
        self.commit(config).await
    }

    /// Let somebody log in. Allowing twice is no error.
    pub async fn target_allow(&mut self, target: &str, rule: &str) -> Result<(), Refused> {
        let rule = canonical(rule)?;
        let mut config = self.config.clone();
        let (_, target) = target_of(&mut config, target)?;
        if target.allow.contains(&rule) {
            return Ok(());
        }
        target.allow.push(rule);
        self.commit(config).await
    }

    /// Take a rule back. Sessions that no rule allows any more are dropped.
    pub async fn target_deny(&mut self, target: &str, rule: &str) -> Result<(), Refused> {
        let rule = canonical(rule)?;
        let mut config = self.config.clone();
        let (name, target) = target_of(&mut config, target)?;
        let before = target.allow.len();
        target.allow.retain(|allowed| *allowed != rule);
        if target.allow.len() == before {
            let rules = if target.allow.is_empty() { "none".to_owned() } else { target.allow.join(", ") };
            return Err(Refused::not_found(format!("target '{name}' has no rule '{rule}'; its rules: {rules}")));
        }
        self.commit(config).await
    }

    /// Demand CHAP, or with `None` nothing.
    pub async fn target_auth(&mut self, target: &str, new: Option<api::NewAuth>) -> Result<(), Refused> {
        let mut config = self.config.clone();
        let (_, target) = target_of(&mut config, target)?;
        target.auth = new.map(AuthConfig::from_command).transpose()?;
        self.commit(config).await
    }

    /// Persist, then apply.
    pub(super) async fn commit(&mut self, config: Config) -> Result<(), Refused> {
        step("target: checked");
        self.persist(config).await?;
        step("target: persisted");
        self.apply().await
    }
}

/// The name of the target that is meant by its name or its iSCSI name.
///
/// # Errors
/// There is none.
pub fn target_name(config: &Config, named: &str) -> Result<String, Refused> {
    if config.targets.contains_key(named) {
        return Ok(named.to_owned());
    }
    let by_iqn = config.targets.iter().find(|(_, target)| target.iqn.eq_ignore_ascii_case(named));
    by_iqn.map(|(name, _)| name.clone()).ok_or_else(|| {
        Refused::not_found(format!("there is no target '{}'; see 'lunaring target list'", named.escape_debug()))
    })
}

pub(super) fn target_of<'a>(config: &'a mut Config, named: &str) -> Result<(String, &'a mut TargetConfig), Refused> {
    let name = target_name(config, named)?;
    match config.targets.get_mut(&name) {
        Some(target) => Ok((name, target)),
        None => Err(Refused::not_found(format!("there is no target '{name}'"))),
    }
}

fn first_free(luns: &BTreeMap<u16, LunConfig>) -> Result<u16, Refused> {
    let free = (0u16..).zip(luns.keys()).find(|(number, used)| number != *used).map(|(number, _)| number);
    let free = free.unwrap_or(u16::try_from(luns.len()).unwrap_or(u16::MAX));
    if usize::from(free) >= LUNS_PER_TARGET_MAX {
        return Err(Refused::conflict(format!("all {LUNS_PER_TARGET_MAX} LUNs of this target are in use")));
    }
    Ok(free)
}

/// A rule in the one form in which it is stored and compared.
fn canonical(rule: &str) -> Result<String, Refused> {
    Ok(rule.parse::<AccessRule>().map_err(Refused::invalid)?.to_string())
}
