//! What runs.

use kadence_core::fact::Fact;
use kadence_core::inventory::Inventory;

use crate::Style;

/// The inventory as a table.
pub fn text(inventory: &Inventory, _style: Style) -> String {
    let mut text = format!(
        "{}: {} servers, {} agents.\n",
        inventory.cluster,
        inventory.servers().count(),
        inventory.agents().count()
    );
    for node in &inventory.nodes {
        let version = node.version.known().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let ready = match &node.ready {
            Fact::Known(true) => "Ready",
            Fact::Known(false) => "NotReady",
            Fact::Unknown(_) => "unknown",
        };
        text.push_str(&format!("  {:<12} {:<7} {version:<16} {ready:<9} {}\n", node.name, node.role, node.address));
    }
    text
}
