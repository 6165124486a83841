//! Who is refused, and what both sides say.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tidelock_proto::{
    identity::TrustDomain,
    pki::{self, Request, Validity},
};
use tidelock_tests::{
    process::Process,
    site::{Site, VOLUME},
    wait::{self, SOON},
};

#[test]
fn a_stranger_an_expired_and_a_neighbour_are_refused_and_told() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    receiver.process.allow("refused");
    let mut good = site.sidecar(&receiver, &volume).start();
    good.settle(SOON);

    let refusals = [
        ("neighbour", another_tenant(&site), "acme/data"),
        ("expired", expired(&site), "expired"),
        ("stranger", another_authority(&site), "authority"),
        ("nobody", site.new_dir("empty.id"), "tls.crt"),
    ];
    for (who, identity, word) in refusals {
        let before = receiver.process.log().len();
        let mut peer = site.sidecar(&receiver, &volume).identity(&identity).start_blind();
        peer.allow("");
        wait::until_true(&format!("{who} is told"), SOON, || peer.log().contains(word));
        println!("{who}: {}", last_line(&peer));
        assert!(peer.ended().is_none_or(|status| !status.success()), "{who} ended in peace");
        peer.kill();
        println!("receiver on {who}: {}", &receiver.process.log()[before..]);
        good.settle(SOON);
    }
}

fn another_tenant(site: &Site) -> PathBuf {
    site.issue("sidecar", &["--tenant", "rival", "--volume", "data"], "rival.id")
}

pub(crate) fn expired(site: &Site) -> PathBuf {
    let out = site.path("expired.id");
    let hour = Duration::from_secs(3600);
    let not_after = SystemTime::now() - hour;
    issue(&site.path("pki"), Validity { not_before: not_after - hour, not_after }, &out);
    out
}

fn another_authority(site: &Site) -> PathBuf {
    let (authority, out) = (site.path("other-pki"), site.path("other.id"));
    let validity = Validity::starting(SystemTime::now(), Duration::from_secs(3600));
    pki::init(&authority, validity).expect("a second authority");
    issue(&authority, validity, &out);
    // It trusts the right receiver, but is not trusted.
    fs::copy(site.path("receiver.id/ca.crt"), out.join("ca.crt")).expect("the site's authority");
    out
}

fn issue(authority: &Path, validity: Validity, out: &Path) {
    let volumes = BTreeSet::from([VOLUME.parse().expect("a volume name")]);
    let domain = TrustDomain::default();
    pki::issue(authority, &domain, &Request::Sidecar { volumes }, validity, out).expect("issued");
}

fn last_line(process: &Process) -> String {
    process.log().lines().last().unwrap_or_default().to_owned()
}
