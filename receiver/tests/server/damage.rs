//! The newest points rest on damaged bytes: what the sidecar lives through, and what is there afterwards.

use std::{fs, path::Path};

use tidelock_proto::{
    PointId, Tree,
    wire::{
        self,
        messages::{
            ReplyKind, RequestKind, StatusRequest, ToReceiverKind, ToSidecarKind, TreeRequest, WantManifest,
        },
    },
};

use crate::harness::*;

const VOLUME: &str = "acme/pg";

/// Flips a bit of the commit that made a file of this name.
fn damage(store: &Path, name: &[u8]) {
    let path = store.join("log/0000000001.seg");
    let mut bytes = fs::read(&path).unwrap();
    let found: Vec<usize> =
        bytes.windows(name.len()).enumerate().filter(|(_, part)| *part == name).map(|(at, _)| at).collect();
    let [at] = found[..] else { panic!("{} places", found.len()) };
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

async fn conditions(site: &Site, receiver: &Receiver) -> Vec<String> {
    let replies = receiver.ask(&site.operator(None), RequestKind::Status(StatusRequest {})).await;
    replies
        .into_iter()
        .find_map(|reply| match reply {
            ReplyKind::Volume(status) => Some(status.store_conditions),
            _ => None,
        })
        .expect("the volume")
}

/// The tree of a point as an operator gets it.
async fn tree(site: &Site, receiver: &Receiver, point: PointId) -> Option<Tree> {
    let request = TreeRequest { volume: VOLUME.to_owned(), point: Some(wire::point_id_to_wire(point)) };
    let mut tree = Tree::new();
    for reply in receiver.ask(&site.operator(None), RequestKind::Tree(request)).await {
        match reply {
            ReplyKind::Tree(part) => {
                for op in wire::decode_ops(part.ops).unwrap() {
                    tree.apply(&op).unwrap();
                }
            }
            ReplyKind::Failed(failed) => {
                assert_eq!(failed.code, 6, "{}", failed.reason);
                return None;
            }
            _ => {}
        }
    }
    tree.seal().unwrap();
    Some(tree)
}

#[tokio::test]
async fn replication_goes_on_by_itself_where_the_newest_points_are_damaged() {
    let site = Site::new();
    let identity = site.sidecar(VOLUME);
    let mut source = Source::new("acme", 1);
    let receiver = site.start().await;
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 7)).await;
    stream.welcome().await;
    let whole = source.replicate(&mut stream, "f1", b"one").await;
    let whole_tree = source.tree.clone();
    for name in ["hit by a flipped bit", "f3", "f4"] {
        source.replicate(&mut stream, name, b"two").await;
    }
    let newest = source.id;
    receiver.stop().await.unwrap();
    damage(&site.path("store"), b"hit by a flipped bit");

    // Twice: a session that ends before its first commit has changed nothing.
    let receiver = site.start().await;
    for instance in [8, 9] {
        let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, instance)).await;
        let welcome = stream.welcome().await;
        assert_eq!(welcome.last, Some(wire::point_id_to_wire(newest)));
        assert_eq!(welcome.digest[..], Tree::new().digest().0);
        assert_eq!(conditions(&site, &receiver).await, ["newest-damaged"]);
    }
    let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 10)).await;
    stream.welcome().await;
    stream.say(ToReceiverKind::WantManifest(WantManifest {})).await;
    let Some(ToSidecarKind::Manifest(manifest)) = stream.hear().await else { panic!("no manifest") };
    assert!(manifest.last);
    let mut anew = Source::new("acme", 1);
    anew.id = newest;
    let first = anew.replicate(&mut stream, "all of it", b"again").await;
    assert_eq!(first, PointId::new(newest.epoch, newest.seq.next()));
    assert_eq!(conditions(&site, &receiver).await, [""; 0]);
    let first_tree = anew.tree.clone();
    anew.replicate(&mut stream, "and", b"on").await;

    // With its index, and with one that is made anew from the log.
    receiver.stop().await.unwrap();
    for rebuild in [false, true] {
        if rebuild {
            fs::remove_dir_all(site.path("store/index")).unwrap();
        }
        let receiver = site.start().await;
        let mut stream = receiver.sidecar(&identity, hello(VOLUME, 1, 11)).await;
        let welcome = stream.welcome().await;
        assert_eq!(welcome.digest[..], anew.tree.digest().0);
        assert_eq!(conditions(&site, &receiver).await, [""; 0]);
        for (point, expected) in [(whole, &whole_tree), (first, &first_tree), (anew.id, &anew.tree)] {
            assert_eq!(tree(&site, &receiver, point).await.as_ref(), Some(expected), "{point}");
        }
        assert_eq!(tree(&site, &receiver, newest).await, None);
        receiver.stop().await.unwrap();
    }
}
