//! The address at which etcd's members find each other.

use std::net::IpAddr;

use super::{Answer, Check, Need, Question, Weight, listed};
use crate::fact::Fact;
use crate::inventory::{Arguments, Datastore, EtcdMember, EtcdRole, HostFacts, Node};

pub(super) const CHECK: Check = Check {
    code: "PEER-ADDRESS",
    number: 34,
    title: "every etcd member is known at the address that its server would start with",
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
    let arguments = match &host.arguments {
        Fact::Unknown(why) => return Some(Answer::unknown(name, "whether it is told its address (node-ip)", why)),
        Fact::Known(arguments) => arguments,
    };
    let (address, from) = match told(node, arguments).or_else(|| Some(worked_out(node, host, arguments)))? {
        Ok(found) => found,
        Err(answer) => return Some(*answer),
    };
    let expected = match address {
        IpAddr::V4(address) => format!("https://{address}:2380"),
        IpAddr::V6(address) => format!("https://[{address}]:2380"),
    };
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

/// An address and where it is from, or what has to be said instead.
type Found = Result<(IpAddr, String), Box<Answer>>;

/// The address that the node is told. `None`: it is told none.
fn told(node: &Node, arguments: &Arguments) -> Option<Found> {
    let name = &node.name;
    let argument = arguments.entries.iter().rev().find(|a| a.key == "node-ip")?;
    let first = argument.value.as_deref().and_then(|v| v.split(',').next()).map(str::trim);
    Some(match first.map(str::parse) {
        Some(Ok(address)) => Ok((address, format!("on {name}, {}: node-ip", argument.place))),
        Some(Err(_)) => Err(Box::new(Answer::unknown(name, "its address", "its node-ip is no IP address"))),
        None => Err(Box::new(Answer::unknown(name, "its address", "the value of node-ip is not shown"))),
    })
}

/// The address that K3s would work out now: that of the flannel interface it is told, else of the default route's.
/// What the Node object says does not help: the kubelet set it at the last start.
fn worked_out(node: &Node, host: &HostFacts, arguments: &Arguments) -> Found {
    let name = &node.name;
    let addresses = match &host.addresses {
        Fact::Known(addresses) => addresses,
        Fact::Unknown(why) => return Err(Box::new(Answer::unknown(name, "the address it would start with", why))),
    };
    let told = arguments.entries.iter().rev().find(|a| a.key == "flannel-iface");
    let interface = told.and_then(|a| a.value.as_ref()).or(addresses.default_route.as_ref());
    let found = interface.and_then(|i| addresses.interfaces.get(i)).map(Vec::as_slice).unwrap_or_default();
    let on = interface.map_or_else(|| "a default route".to_owned(), |i| format!("the interface {i}"));
    let show = format!("on {name}: ip -o addr show scope global; ip route show default:");
    match found {
        [] => Err(Box::new(
            Answer::block(name, format!("{name} has no `node-ip` and no address on {on}: K3s would not start"))
                .fact(format!("{show} none on {on}"))
                .remedy(format!("set `node-ip` in config.yaml of {name} to the address that etcd's list has")),
        )),
        [address] => Ok((*address, show)),
        several => Err(Box::new(
            Answer::block(
                name,
                format!("{name} has {} on {on} and no `node-ip`: which one K3s starts with is left to chance", {
                    listed(several)
                }),
            )
            .fact(format!("{show} {}", listed(several)))
            .remedy(format!("set `node-ip` in config.yaml of {name} to the address that etcd's list has")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Inventory;
    use crate::inventory::example::{argument, ha, host_mut, node_mut, sqlite};
    use crate::validate::checks::tests::{Case, blocks, passes, unknown};

    /// `s2` as it would find itself now: these addresses on `eth0`, where its default route is.
    fn with_addresses(addresses: &[&str]) -> Inventory {
        let mut inventory = ha("v1.36.3+k3s1");
        let Fact::Known(known) = &mut host_mut(&mut inventory, "s2").addresses else { return inventory };
        let parsed = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        known.interfaces.insert("eth0".to_owned(), parsed);
        inventory
    }

    fn tell(inventory: &mut Inventory, key: &str, value: &str) {
        if let Fact::Known(arguments) = &mut host_mut(inventory, "s2").arguments {
            arguments.entries.push(argument(key, value));
        }
    }

    fn run(inventory: &Inventory) -> Vec<crate::validate::finding::Finding> {
        Case::of(inventory).run()
    }

    #[test]
    fn an_address_that_moved_since_the_last_start_blocks() {
        // The Node still says what the kubelet found when it started.
        let mut inventory = with_addresses(&["192.168.7.12"]);
        assert_eq!(node_mut(&mut inventory, "s2").address, "10.0.0.12");
        blocks(
            &run(&inventory),
            "PEER-ADDRESS",
            "at https://10.0.0.12:2380, and it would start at https://192.168.7.12",
        );
        passes(&run(&sqlite("v1.36.3+k3s1")), "PEER-ADDRESS");
    }

    #[test]
    fn who_is_told_its_address_does_not_work_it_out() {
        let mut inventory = with_addresses(&["192.168.7.12"]);
        tell(&mut inventory, "node-ip", "10.0.0.12,fd00::12");
        passes(&run(&inventory), "PEER-ADDRESS");
        tell(&mut inventory, "node-ip", "10.0.0.99");
        blocks(&run(&inventory), "PEER-ADDRESS", "it would start at https://10.0.0.99:2380");
    }

    #[test]
    fn the_flannel_interface_goes_before_the_default_route() {
        let mut inventory = with_addresses(&["192.168.7.12"]);
        tell(&mut inventory, "flannel-iface", "wg0");
        blocks(&run(&inventory), "PEER-ADDRESS", "no address on the interface wg0");
        if let Fact::Known(known) = &mut host_mut(&mut inventory, "s2").addresses {
            known.interfaces.insert("wg0".to_owned(), vec!["10.0.0.12".parse().expect("an address")]);
        }
        passes(&run(&inventory), "PEER-ADDRESS");
    }

    #[test]
    fn several_addresses_are_not_chosen_from() {
        for several in [["10.0.0.12", "10.0.0.200"], ["10.0.0.12", "fd00::12"]] {
            let mut inventory = with_addresses(&several);
            blocks(&run(&inventory), "PEER-ADDRESS", "left to chance");
            tell(&mut inventory, "node-ip", "10.0.0.12");
            passes(&run(&inventory), "PEER-ADDRESS");
        }
    }

    #[test]
    fn ipv6_stands_in_brackets() {
        let mut inventory = with_addresses(&["fd00::12"]);
        if let Fact::Known(Datastore::EmbeddedEtcd { members: Fact::Known(members) }) = &mut inventory.datastore {
            members[1].peer_urls = vec!["https://[fd00::12]:2380".to_owned()];
        }
        passes(&run(&inventory), "PEER-ADDRESS");
    }

    #[test]
    fn an_address_that_is_not_known_blocks() {
        let mut inventory = ha("v1.36.3+k3s1");
        host_mut(&mut inventory, "s2").addresses = Fact::unknown("the host has no `ip`");
        unknown(&run(&inventory), "PEER-ADDRESS", "no `ip`");
        host_mut(&mut inventory, "s2").arguments = Fact::unknown("it did not arrive");
        unknown(&run(&inventory), "PEER-ADDRESS", "did not arrive");
        if let Fact::Known(addresses) = &mut host_mut(&mut inventory, "s3").addresses {
            addresses.default_route = None;
        }
        blocks(&run(&inventory), "PEER-ADDRESS", "s3 has no `node-ip` and no address on a default route");
    }
}
