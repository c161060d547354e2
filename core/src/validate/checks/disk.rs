//! Room for the new binary, the one that is kept, and the copies of the datastore.

use super::{Answer, Check, Need, Question, Weight, bytes};
use crate::fact::Fact;
use crate::inventory::{Disk, HostFacts, Node, Role};

pub(super) const CHECK: Check = Check {
    code: "DISK",
    number: 17,
    title: "every node has room for the update and for its undo",
    why: "a disk that fills up in the middle leaves half a copy, and takes etcd or SQLite with it",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

/// The kubelet begins to delete images at 85 % by default; below 80 % an update does not set that off.
const USED_PERCENT: u64 = 80;
const FREE_INODES_PERCENT: u64 = 10;

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (node, host) in question.hosts() {
        let pressure = node.object.as_ref().is_some_and(|o| o.pressures.iter().any(|p| p == "DiskPressure"));
        if pressure {
            answers.push(
                Answer::block(&node.name, format!("{} reports DiskPressure", node.name))
                    .fact(format!("kubectl describe node {}: DiskPressure True", node.name))
                    .remedy("free space on it: pods are being evicted, and images deleted"),
            );
        }
        match &host.disks {
            Fact::Unknown(why) => answers.push(Answer::unknown(&node.name, "how much room its disks have", why)),
            Fact::Known(disks) => answers.extend(room(node, host, disks)),
        }
    }
    answers
}

fn room(node: &Node, host: &HostFacts, disks: &[Disk]) -> Vec<Answer> {
    let name = &node.name;
    // Without an installation that is known INSTALLATION blocks; its size could not be guessed here.
    let Fact::Known(install) = &host.install else { return Vec::new() };
    let database = match database(node, host) {
        Fact::Known(size) => size,
        Fact::Unknown(why) => return vec![Answer::unknown(name, "the size of its datastore", &why)],
    };
    // Staged, in place, kept for the way back.
    let binaries = install.size.saturating_mul(3);
    let data = binaries.saturating_add(database.saturating_mul(2)).max(database.saturating_mul(3));
    let mut answers = Vec::new();
    let mut mounts: Vec<&str> = Vec::new();
    for (holds, what) in [("data", "the data directory"), ("binary", "the binary"), ("kadence", "Kadence's own folder")]
    {
        let Some(disk) = disks.iter().find(|d| d.holds == holds) else {
            answers.push(Answer::unknown(name, &format!("the disk of {what}"), "df did not tell it"));
            continue;
        };
        if mounts.contains(&disk.mount.as_str()) {
            continue;
        }
        mounts.push(&disk.mount);
        let df = format!("on {name}, df {}: {} of {} free", disk.mount, bytes(disk.free), bytes(disk.total));
        let need = if holds == "data" { data } else { binaries };
        if disk.free <= need {
            let of = if database > 0 && holds == "data" {
                format!(
                    "three times the binary ({}) and two to three times the datastore ({})",
                    bytes(install.size),
                    bytes(database)
                )
            } else {
                format!("three times the binary ({})", bytes(install.size))
            };
            answers.push(
                Answer::block(
                    name,
                    format!(
                        "{name} has {} free on {}, and the update needs {}",
                        bytes(disk.free),
                        disk.mount,
                        bytes(need)
                    ),
                )
                .fact(df.clone())
                .fact(format!("needed: {of}"))
                .remedy(format!(
                    "free {} on {} of {name}",
                    bytes(need.saturating_sub(disk.free).saturating_add(1)),
                    disk.mount
                )),
            );
        } else if disk.total > 0 && (disk.total - disk.free.min(disk.total)) * 100 / disk.total > USED_PERCENT {
            answers.push(
                Answer::warn(name, format!("{} of {name} is more than {USED_PERCENT} % full", disk.mount))
                    .fact(df.clone())
                    .remedy(
                        "free space: from 85 % on the kubelet deletes images, and pods may have to pull theirs again",
                    ),
            );
        }
        // File systems without a fixed number of inodes say 0.
        if disk.inodes > 0 && disk.inodes_free * 100 / disk.inodes <= FREE_INODES_PERCENT {
            answers.push(
                Answer::block(
                    name,
                    format!(
                        "{} of {name} is short of inodes: {} of {} free",
                        disk.mount, disk.inodes_free, disk.inodes
                    ),
                )
                .fact(format!("on {name}, df -i {}", disk.mount))
                .remedy("delete small files that are not needed: unused images, old logs"),
            );
        }
    }
    answers
}

/// 0 where the node keeps no datastore.
fn database(node: &Node, host: &HostFacts) -> Fact<u64> {
    match (node.role, &host.etcd, &host.sqlite) {
        (Role::Agent, _, _) | (Role::Server, None, None) => Fact::Known(0),
        (Role::Server, Some(etcd), _) => etcd.as_ref().and_then(|e| e.db_bytes.clone()),
        (Role::Server, None, Some(sqlite)) => sqlite.as_ref().map(|s| s.db_bytes.saturating_add(s.wal_bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{ha, host_mut, node_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown, warns};

    fn with(change: impl Fn(&mut Disk)) -> Case {
        let mut inventory = ha("v1.36.3+k3s1");
        let Fact::Known(disks) = &mut host_mut(&mut inventory, "s1").disks else { return Case::of(&inventory) };
        disks.iter_mut().for_each(change);
        Case::of(&inventory)
    }

    #[test]
    fn the_larger_of_the_two_rules_counts() {
        // 3 × 66 MiB + 2 × 41 MiB = 280 MiB.
        let mib = 1 << 20;
        blocks(&with(|d| (d.free, d.total) = (280 * mib, 300 * mib)).run(), "DISK", "s1 has 293 MB free");
        warns(&with(|d| (d.free, d.total) = (281 * mib, 30_000 * mib)).run(), "DISK", "more than 80 % full");
        passes(&with(|d| (d.free, d.total) = (281 * mib, 300 * mib)).run(), "DISK");
        // 3 × 900 MiB is more than 3 × 66 + 2 × 900.
        let mut inventory = sqlite("v1.36.3+k3s1");
        let host = host_mut(&mut inventory, "s1");
        let Some(Fact::Known(files)) = &mut host.sqlite else { return };
        (files.db_bytes, files.wal_bytes) = (890 * mib, 10 * mib);
        let Fact::Known(disks) = &mut host.disks else { return };
        for disk in disks {
            (disk.free, disk.total) = (2_500 * mib, 3_000 * mib);
        }
        blocks(&Case::of(&inventory).run(), "DISK", "the update needs 2831 MB");
    }

    #[test]
    fn inodes_and_pressure_block() {
        blocks(&with(|d| (d.inodes, d.inodes_free) = (1_000, 100)).run(), "DISK", "short of inodes");
        passes(&with(|d| (d.inodes, d.inodes_free) = (0, 0)).run(), "DISK");
        let mut inventory = ha("v1.36.3+k3s1");
        if let Some(object) = &mut node_mut(&mut inventory, "a1").object {
            object.pressures = vec!["DiskPressure".to_owned()];
        }
        blocks(&Case::of(&inventory).run(), "DISK", "a1 reports DiskPressure");
    }

    #[test]
    fn disks_and_sizes_that_are_not_known_block() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "a1").disks = Fact::unknown("df did not answer as expected");
        unknown(&Case::of(&inventory).run(), "DISK", "df did not answer");
        let mut inventory = ha("v1.36.3+k3s1");
        if let Some(Fact::Known(etcd)) = &mut host_mut(&mut inventory, "s1").etcd {
            etcd.db_bytes = Fact::unknown("etcd does not tell its size");
        }
        unknown(&Case::of(&inventory).run(), "DISK", "the size of its datastore");
    }
}
