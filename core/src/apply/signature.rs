//! Lines of K3s's journal that name a cause.
//!
//! A signature names the cause of a state that was observed otherwise: an exit, a third restart, a deadline passed. It
//! never halts anything by itself: most of these lines also appear in the first seconds of a healthy start.

/// A known line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// A short name, stable: it is stored in events.
    pub class: &'static str,
    /// Any of these, anywhere in the line.
    pub patterns: &'static [&'static str],
    pub remedy: &'static str,
    /// Whether the line also appears while a healthy K3s starts or stops. It names a cause only where no other does.
    pub common: bool,
}

/// The table, most telling first: the first that matches a line names it.
pub const SIGNATURES: &[Signature] = &[
    Signature {
        class: "etcd-downgrade",
        patterns: &["invalid downgrade; server version is lower than determined cluster version"],
        remedy: "etcd's data is newer than this binary: put the newer binary back, or restore the snapshot",
        common: false,
    },
    Signature {
        class: "etcd-membership",
        patterns: &["too many learner member", "has not yet been promoted from learner"],
        remedy: "touch no other server; repair the etcd membership first",
        common: true,
    },
    Signature {
        class: "etcd-peer-url",
        patterns: &["this server is a not a member of the etcd cluster"],
        remedy: "compare the node's address (node-ip) with the peer URL in etcd's member list",
        common: false,
    },
    Signature {
        class: "etcd-quota",
        patterns: &["database space exceeded", "alarm:NOSPACE"],
        remedy: "etcd's quota is used up: compact, defragment, raise quota-backend-bytes",
        common: false,
    },
    Signature {
        class: "token",
        patterns: &["bootstrap data already found and encrypted with different token"],
        remedy: "this server's token is not the cluster's: put the right one into its configuration",
        common: false,
    },
    Signature {
        class: "certificates-on-disk",
        patterns: &["newer than datastore and could cause a cluster outage"],
        remedy: "move the named file away and start again: the datastore's copy is the right one",
        common: false,
    },
    Signature {
        class: "bootstrap-format",
        patterns: &["cannot unmarshal string into Go value of type bootstrap.File"],
        remedy: "this version cannot join servers of the old one: update in place instead of by replacement",
        common: false,
    },
    Signature {
        class: "cluster-ca",
        patterns: &["token CA hash does not match"],
        remedy: "the server that answers has another CA: look which cluster `server:` points to",
        common: false,
    },
    Signature {
        class: "node-identity",
        patterns: &["Node password rejected", "hash does not match"],
        remedy: "restore /etc/rancher/node/password, or delete the Secret <node>.node-password.k3s",
        common: false,
    },
    Signature {
        class: "cgroup-v1",
        patterns: &["kubelet is configured to not run on a host using cgroup v1"],
        remedy: "move the host to cgroup v2, or set kubelet-arg: fail-cgroupv1=false for a time",
        common: false,
    },
    Signature {
        class: "configuration",
        patterns: &[
            "unrecognized feature gate",
            "unknown flag",
            "flag provided but not defined",
            "unknown shorthand flag",
        ],
        remedy: "this version does not know the flag or feature gate: remove it where it is set, then make a new plan",
        common: false,
    },
    Signature {
        class: "configuration-mismatch",
        patterns: &["critical configuration value mismatch between servers"],
        remedy: "critical flags must be equal on all servers: compare their config.yaml",
        common: false,
    },
    Signature {
        class: "kernel-module",
        patterns: &["flannel exited: operation not supported"],
        remedy: "load the kernel module of the flannel backend (vxlan or wireguard)",
        common: false,
    },
    Signature {
        class: "nftables",
        patterns: &["is incompatible, use 'nft' tool", "failed to verify rule exists"],
        remedy: "remove native nft rules from the filter table, or stop what writes them",
        common: false,
    },
    Signature {
        class: "containerd-shim",
        patterns: &["failed to load shim", "invalid custom binary path"],
        remedy: "restart the pods that still use a shim of an old data directory",
        common: false,
    },
    Signature {
        class: "runtime",
        patterns: &["no runtime for \"nvidia\" is configured"],
        remedy: "redo the custom containerd template for this version",
        common: false,
    },
    Signature {
        class: "ip-family",
        patterns: &["IPv6 was enabled but no IPv6 address"],
        remedy: "set node-ip, or give the interface its IPv6 address",
        common: false,
    },
    Signature {
        class: "certificate",
        patterns: &["x509: certificate has expired or is not yet valid"],
        remedy: "look at the clock first, then at k3s certificate check",
        common: true,
    },
    Signature {
        class: "disk-full",
        patterns: &["no space left on device"],
        remedy: "make room on the file system that is named",
        common: false,
    },
    Signature {
        class: "port-in-use",
        patterns: &["bind: address already in use"],
        remedy: "another process holds the port: an old K3s, or another program",
        common: false,
    },
    Signature {
        class: "kine",
        patterns: &["database is locked", "Compact failed", "Slow SQL"],
        remedy: "the database is slow or locked: look at its disk and size",
        common: true,
    },
    Signature {
        class: "latency",
        patterns: &["leaderelection lost", "leader election lost", "apply request took too long"],
        remedy: "the disk or the network is too slow for etcd: wait, and give it a faster disk",
        common: true,
    },
    Signature {
        class: "tunnel",
        patterns: &["failed to find Session for client"],
        remedy: "restart the agent: its tunnel to the servers is missing",
        common: true,
    },
    Signature {
        class: "drain",
        patterns: &["Cannot evict pod as it would violate"],
        remedy: "the disruption budget allows no eviction: scale up or widen it",
        common: true,
    },
    Signature {
        class: "helm",
        patterns: &[
            "does not match expected revision",
            "another operation (install/upgrade/rollback) is in progress",
            "invalid ownership metadata",
            "don't meet the specifications of the schema",
        ],
        remedy: "repair the named Helm release: helm history, then rollback or upgrade it",
        common: true,
    },
];

/// The signature of a line; `None` if no known one matches.
pub fn classify(line: &str) -> Option<&'static Signature> {
    SIGNATURES.iter().find(|s| s.patterns.iter().any(|p| line.contains(p)))
}

/// Whether lines of this class appear while a healthy K3s starts, too.
pub fn is_common(class: &str) -> bool {
    SIGNATURES.iter().any(|s| s.class == class && s.common)
}

/// What to do about a class.
pub fn remedy(class: &str) -> Option<&'static str> {
    SIGNATURES.iter().find(|s| s.class == class).map(|s| s.remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_leads_to_its_own_signature_and_classes_are_unique() {
        for signature in SIGNATURES {
            for pattern in signature.patterns {
                let line = format!("time=\"x\" level=fatal msg=\"{pattern}\"");
                assert_eq!(classify(&line).map(|s| s.class), Some(signature.class), "{pattern}");
            }
            assert_eq!(SIGNATURES.iter().filter(|s| s.class == signature.class).count(), 1, "{}", signature.class);
        }
    }

    #[test]
    fn an_ordinary_line_matches_nothing() {
        for line in
            ["k3s is up and running", "Running kube-apiserver --feature-gates=X=true", "certificate will expire"]
        {
            assert_eq!(classify(line), None, "{line}");
        }
    }
}
