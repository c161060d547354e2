//! The address at which etcd's members find each other.

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::{Datastore, EtcdMember, EtcdRole, HostFacts, Node};

pub(super) const CHECK: Check = Check {
    code: "PEER-ADDRESS",
    number: 34,
    title: "every etcd member is known at the address that its server has",
    why: "K3s works out its address at each start; if it is another one than etcd's member list has, the server is not \
          let in again",
    weight: Weight::Gate,
    needs: &[Need::Hosts],
    judge,
};

fn judge(question: &Question<'_>) -> Vec<Answer> {
    let members = match &question.inventory.datastore {
        Fact::Unknown(why) => return vec![Answer::unknown("cluster", "the datastore", why)],
        Fact::Known(Datastore::Sqlite | Datastore::External) => return Vec::new(),
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Unknown(why) }) => {
            return vec![Answer::unknown("cluster", "the list of etcd's members", why)];
        }
        Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) => members,
    };
    let servers = question.servers().filter(|(n, _)| !n.etcd.is(&EtcdRole::None));
    servers.filter_map(|(node, host)| one(node, host, members)).collect()
}

fn one(node: &Node, host: &HostFacts, members: &[EtcdMember]) -> Option<Answer> {
    let name = &node.name;
    let (address, from) = match &host.arguments {
        Fact::Unknown(why) => return Some(Answer::unknown(name, "whether it is told its address (node-ip)", why)),
        Fact::Known(arguments) => match arguments.entries.iter().rev().find(|a| a.key == "node-ip") {
            Some(argument) => match argument.value.as_deref().and_then(|v| v.split(',').next()) {
                Some(address) => (address.trim(), format!("on {name}, {}: node-ip", argument.place)),
                None => return Some(Answer::unknown(name, "its address", "the value of node-ip is not shown")),
            },
            None => (node.address.as_str(), format!("kubectl get node {name} --output wide: INTERNAL-IP")),
        },
    };
    if address.is_empty() {
        return Some(Answer::unknown(name, "its address", "its Node has no internal address"));
    }
    let expected =
        if address.contains(':') { format!("https://[{address}]:2380") } else { format!("https://{address}:2380") };
    let member = members.iter().find(|m| m.node().as_ref() == Some(name));
    let urls = match member {
        Some(member) if member.peer_urls.contains(&expected) => return None,
        Some(member) => listed(&member.peer_urls),
        None => "no member of its name".to_owned(),
    };
    Some(
        Answer::block(name, format!("etcd knows {name} at {urls}, and it would start at {expected}"))
            .fact(format!("etcd's member list: {urls}"))
            .fact(format!("{from} {address}"))
            .remedy(format!(
                "set `node-ip` in config.yaml of {name} to the address in the list, or correct the member's peer URL"
            )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::example::{argument, ha, host_mut, node_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    #[test]
    fn an_address_that_moved_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "s2").address = "192.168.7.12".to_owned();
        blocks(&Case::of(&inventory).run(), "PEER-ADDRESS", "https://192.168.7.12:2380");
        // Told where it is, it does not work it out.
        if let Fact::Known(arguments) = &mut host_mut(&mut inventory, "s2").arguments {
            arguments.entries.push(argument("node-ip", "10.0.0.12,fd00::12"));
        }
        passes(&Case::of(&inventory).run(), "PEER-ADDRESS");
        passes(&Case::of(&sqlite("v1.36.3+k3s1")).run(), "PEER-ADDRESS");
    }

    #[test]
    fn ipv6_stands_in_brackets() {
        let mut inventory = ha("v1.36.3+k3s1");
        node_mut(&mut inventory, "s2").address = "fd00::12".to_owned();
        if let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = &mut inventory.datastore {
            members[1].peer_urls = vec!["https://[fd00::12]:2380".to_owned()];
        }
        passes(&Case::of(&inventory).run(), "PEER-ADDRESS");
    }

    #[test]
    fn an_address_that_is_not_known_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").arguments = Fact::unknown("it did not arrive");
        unknown(&Case::of(&inventory).run(), "PEER-ADDRESS", "did not arrive");
    }
}
