//! Who gets in, who does not, and what each side is told.

use super::*;
use crate::identity::Role;

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    for host in ["127.0.0.1", "localhost"] {
        let (client, served) = meet(&server, host, &site.sidecar()).await;
        let (client, served) = (client.expect("connected"), served.expect("accepted"));
        assert_eq!(client.peer().role, Role::Receiver);
        assert!(served.peer().may_write(&"acme/pg".parse().expect("name")));
        assert!(!served.peer().may_write(&"acme/other".parse().expect("name")));
    }
    let operator = site.identity("operator", &Request::Operator { tenant: Some("acme".to_owned()) });
    let (client, served) = meet(&server, "127.0.0.1", &operator).await;
    assert!(client.is_ok());
    assert_eq!(served.expect("accepted").peer().role, Role::Operator { tenant: Some("acme".to_owned()) });
}
