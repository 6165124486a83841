//! What the authority writes, and what it refuses to.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::identity::{Identity, IdentityFileError, Role, TrustDomain};

struct Site(tempfile::TempDir);

impl Site {
    fn new() -> Self {
        let site = Self(tempfile::tempdir().expect("temporary directory"));
        init(&site.path("ca"), Validity::starting(SystemTime::now(), CA_VALIDITY)).expect("authority");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn issue(&self, request: &Request, out: &str) -> Result<(), PkiError> {
        let validity = Validity::starting(SystemTime::now(), LEAF_VALIDITY);
        issue(&self.path("ca"), &TrustDomain::default(), request, validity, &self.path(out))
    }

    fn operator(&self, out: &str) -> Result<(), PkiError> {
        self.issue(&Request::Operator { tenant: None }, out)
    }

    fn mode(&self, name: &str) -> u32 {
        self.path(name).metadata().expect("exists").permissions().mode() & 0o777
    }

    fn names(&self, directory: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(directory)).expect("directory");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

fn volumes(names: &[&str]) -> Request {
    Request::Sidecar { volumes: names.iter().map(|name| name.parse().expect("name")).collect() }
}

#[test]
fn what_is_issued_can_be_loaded_and_keys_are_private() {
    let site = Site::new();
    site.issue(&volumes(&["acme/pg"]), "deep/out").expect("issued");
    let identity = Identity::load(site.path("deep/out")).expect("identity");
    assert!(identity.peer().may_write(&"acme/pg".parse().expect("name")));
    assert_eq!(site.mode("ca/ca.key"), 0o600);
    assert_eq!(site.mode("deep/out/tls.key"), 0o600);
    assert_eq!(site.mode("deep/out/tls.crt"), 0o644);
    assert_eq!(site.names("deep"), ["out"], "staging is left behind");
    assert_eq!(site.names("deep/out"), ["ca.crt", "tls.crt", "tls.key"]);
}

#[test]
fn an_identity_is_renewed_in_place_and_an_authority_is_not() {
    let site = Site::new();
    site.operator("out").expect("issued");
    let first = Identity::load(site.path("out")).expect("identity").serial();
    site.operator("out").expect("issued again");
    assert_ne!(Identity::load(site.path("out")).expect("identity").serial(), first);
    assert_eq!(site.names("out"), ["ca.crt", "tls.crt", "tls.key"]);

    let before = std::fs::read(site.path("ca/ca.key")).expect("key");
    let again = init(&site.path("ca"), Validity::starting(SystemTime::now(), CA_VALIDITY));
    assert!(matches!(again, Err(PkiError::Exists(_))));
    assert!(matches!(site.operator("ca"), Err(PkiError::IntoAuthority(_))));
    assert_eq!(std::fs::read(site.path("ca/ca.key")).expect("key"), before);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let site = Site::new();
    for request in [
        volumes(&[]),
        volumes(&["acme/pg", "other/pg"]),
        Request::Receiver { name: "r".to_owned(), hosts: vec![] },
        Request::Receiver { name: "../r".to_owned(), hosts: vec!["a.example".to_owned()] },
        Request::Operator { tenant: Some("A".to_owned()) },
    ] {
        let result = site.issue(&request, "out");
        assert!(matches!(result, Err(PkiError::BadRequest(_))), "{request:?}: {result:?}");
    }
    let host = Request::Receiver { name: "r".to_owned(), hosts: vec!["a b".to_owned()] };
    assert!(matches!(site.issue(&host, "out"), Err(PkiError::BadHost(_))));
    assert!(!site.path("out").exists());
}

#[test]
fn a_missing_foreign_or_expired_authority_signs_nothing() {
    let site = Site::new();
    std::fs::rename(site.path("ca"), site.path("old")).expect("renamed");
    assert!(matches!(site.operator("out"), Err(PkiError::NoAuthority(_))));

    init(&site.path("ca"), Validity::starting(SystemTime::now(), CA_VALIDITY)).expect("authority");
    std::fs::copy(site.path("old/ca.key"), site.path("ca/ca.key")).expect("copied");
    assert!(matches!(site.operator("out"), Err(PkiError::AuthorityKeyMismatch(_))));

    std::fs::remove_dir_all(site.path("ca")).expect("removed");
    let hour = Duration::from_secs(3600);
    init(&site.path("ca"), Validity::starting(SystemTime::now() - 2 * hour, hour)).expect("authority");
    assert!(matches!(site.operator("out"), Err(PkiError::AuthorityExpired { .. })));
}

#[test]
fn no_certificate_outlives_its_authority() {
    let site = Site::new();
    std::fs::remove_dir_all(site.path("ca")).expect("removed");
    let ends = SystemTime::now() + Duration::from_secs(3600);
    init(&site.path("ca"), Validity { not_before: SystemTime::now() - CLOCK_SKEW, not_after: ends })
        .expect("authority");
    site.operator("out").expect("issued");
    assert!(Identity::load(site.path("out")).expect("identity").not_after() <= ends);
}

/// Each complaint about an identity directory names the file and says what to do.
#[test]
fn an_unusable_identity_directory_is_explained() {
    let site = Site::new();
    site.operator("out").expect("issued");
    site.operator("other").expect("issued");
    let good = |name: &str| std::fs::read(site.path("other").join(name)).expect("file");
    let complaint = || Identity::load(site.path("out")).expect_err("unusable").to_string();

    for (name, content, expected) in [
        ("tls.key", good("tls.key"), "tls.key: is not the key of the certificate in tls.crt"),
        ("tls.key", b"hello".to_vec(), "tls.key: holds no private key in PEM form"),
        ("tls.crt", Vec::new(), "tls.crt: holds no certificate in PEM form"),
        ("tls.crt", good("ca.crt"), "tls.crt: the certificate carries no SPIFFE id"),
        ("ca.crt", b"-----BEGIN CERTIFICATE-----\n!!\n".to_vec(), "ca.crt: holds no certificate in PEM form"),
        ("ca.crt", vec![b' '; 2 << 20], "ca.crt: larger than"),
    ] {
        let path = site.path("out").join(name);
        let before = std::fs::read(&path).expect("file");
        std::fs::write(&path, content).expect("written");
        let complaint = complaint();
        assert!(complaint.contains(expected) && !complaint.contains('\n'), "{complaint}");
        std::fs::write(&path, before).expect("restored");
    }
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let (path, aside) = (site.path("out").join(name), site.path("aside"));
        std::fs::rename(&path, &aside).expect("renamed");
        assert!(complaint().contains(&format!("{name}: no such file")), "{}", complaint());
        std::fs::create_dir(&path).expect("directory");
        assert!(complaint().contains(&format!("{name}: cannot be read")), "{}", complaint());
        std::fs::remove_dir(&path).expect("removed");
        std::fs::rename(&aside, &path).expect("restored");
    }
    assert_eq!(
        Identity::load(site.path("out")).expect("restored").peer().role,
        Role::Operator { tenant: None }
    );

    let now = SystemTime::now();
    let late = Identity::load_at(site.path("out"), now + 2 * LEAF_VALIDITY);
    assert!(matches!(late, Err(IdentityFileError::Expired { .. })));
    let early = Identity::load_at(site.path("out"), now - 2 * CLOCK_SKEW);
    assert!(matches!(early, Err(IdentityFileError::NotYetValid { .. })));
}
