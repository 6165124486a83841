//! Which rules make sense.

use serde_json::json;

use super::*;

fn plain() -> Value {
    json!({"group": "cert-manager.io", "version": "v1", "kind": "Certificate", "plural": "certificates"})
}

fn with(key: &str, value: Value) -> Value {
    let mut rule = plain();
    rule[key] = value;
    rule
}

#[test]
fn a_rule_is_read_and_what_makes_no_sense_is_refused() {
    let rule: Rule = plain().to_string().parse().expect("a rule");
    assert!(rule.namespaced && !rule.owns);
    assert_eq!(
        (rule.api_version().as_str(), rule.qualified().as_str()),
        ("cert-manager.io/v1", "Certificate.cert-manager.io")
    );
    let written = serde_json::to_string(&rule).expect("JSON");
    assert_eq!(written.parse::<Rule>().expect("a rule"), rule);
    let field = |field: &str, kind: &str| json!([{"field": field, "kind": kind}]);
    let mut own = with("group", json!("apps"));
    own["kind"] = json!("StatefulSet");
    let mut wide = with("namespaced", json!(false));
    wide["names"] = field("/spec/secretName", "Secret");
    for bad in [
        json!({}),
        with("group", json!("")),
        with("plural", json!("a/b")),
        with("more", json!(1)),
        with("names", field("spec.secretName", "Secret")),
        with("names", field("/spec/secretName", "")),
        with("takes", field("/spec/name", "StatefulSet")),
        with("labels", json!(["$(X)"])),
        own,
        wide,
    ] {
        assert!(bad.to_string().parse::<Rule>().is_err(), "{bad}");
    }
}

#[test]
fn a_place_leads_through_lists_and_escaped_names() {
    let object = json!({"a": [{"b": "1"}, {"c": "2"}, {"b": "3"}], "x/y": "4"});
    let found =
        |path: &str| at(&object, path).into_iter().map(|(_, value)| value.clone()).collect::<Vec<_>>();
    assert_eq!(found("/a/*/b"), [json!("1"), json!("3")]);
    assert_eq!(found("/x~1y"), [json!("4")]);
    assert!(found("/a/b").is_empty() && found("/no/where").is_empty());
}
