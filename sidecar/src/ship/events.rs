//! What the session tells the cutter.

use tidelock_proto::{ChunkId, Epoch, PointId, Tree};

/// The tree that a session begins with.
#[derive(Debug)]
pub enum AgreedTree {
    /// The cutter's own: it goes on as if nothing had happened.
    Resumed,
    /// The receiver's. Everything that was given to the outbox and not acknowledged is forgotten.
    Manifest(Tree),
    /// The volume has no points, or the newest of them cannot be opened any more. Everything that was given to the outbox is forgotten.
    Empty,
}

/// Something the cutter must know.
#[derive(Debug)]
pub enum ShipEvent {
    /// A session is open.
    Agreed {
        /// The newest durable point. The next commit follows it, or is the first of its epoch.
        last: Option<PointId>,
        /// Where the cutter starts from.
        tree: AgreedTree,
    },
    /// This point and all before it are durable.
    Acked {
        /// The newest durable point.
        point: PointId,
    },
    /// There is no session. Nothing is lost and the next one is tried for; the window fills meanwhile.
    Disconnected {
        /// Why, in words for people.
        reason: String,
    },
    /// The window was found full, and is not any more.
    WindowOpen,
    /// A planned move begins: see [`super::Outbox::left`].
    Leave,
    /// The receiver has lost these chunks, whose contents have these lengths in bytes (0 if that is lost, too): see
    /// [`super::Outbox::resent`].
    Resend(Vec<(ChunkId, u32)>),
    /// Over for good: a newer epoch has another writer.
    Fenced {
        /// The volume's epoch.
        epoch: Epoch,
    },
    /// Over for good: another sidecar of the same epoch took over.
    Superseded,
    /// Over for good: the receiver will not have this sidecar.
    Denied {
        /// In its words.
        reason: String,
    },
    /// Over for good: everything until [`super::Outbox::finish`] is durable.
    Finished,
}

/// Events that wait to be taken: at most one of a kind, the newest, in the order they came.
#[derive(Default)]
pub(super) struct Events(Vec<ShipEvent>);

impl Events {
    pub(super) fn push(&mut self, event: ShipEvent) {
        match &event {
            // A tree that was not taken is still the one to start from.
            ShipEvent::Agreed { tree: AgreedTree::Resumed, .. } if self.untaken_tree() => return,
            // The connection it spoke of is gone.
            ShipEvent::Disconnected { .. } => self.0.retain(|old| !is_resumed(old)),
            _ => {}
        }
        self.0.retain(|old| std::mem::discriminant(old) != std::mem::discriminant(&event));
        self.0.push(event);
    }

    pub(super) fn take(&mut self) -> Vec<ShipEvent> {
        std::mem::take(&mut self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a tree waits that the cutter must start from.
    pub(super) fn untaken_tree(&self) -> bool {
        self.0.iter().any(|event| matches!(event, ShipEvent::Agreed { .. }) && !is_resumed(event))
    }
}

fn is_resumed(event: &ShipEvent) -> bool {
    matches!(event, ShipEvent::Agreed { tree: AgreedTree::Resumed, .. })
}
