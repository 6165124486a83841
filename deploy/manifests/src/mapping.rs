//! What is different elsewhere: namespaces, storage classes, images, and single fields.

use std::{collections::BTreeMap, str::FromStr};

use serde_json::Value;
use thiserror::Error;

use crate::object::{Key, items};

/// What becomes of names. What is not in a map stays.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mapping {
    /// Namespaces.
    pub namespaces: BTreeMap<String, String>,
    /// Storage classes.
    pub storage_classes: BTreeMap<String, String>,
    /// Beginnings of images; the longest that fits is taken.
    pub images: BTreeMap<String, String>,
    /// Fields, after everything else.
    pub sets: Vec<Set>,
}

/// A field and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Set {
    kind: String,
    name: String,
    pointer: String,
    value: Value,
}

/// Why a field cannot be set.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MappingError {
    /// It is not written so.
    #[error("{0:?}: write KIND/NAME:/path/to/field=VALUE, such as statefulset/orders:/spec/replicas=1")]
    Shape(String),
    /// There is no such object.
    #[error("there is no {0} to set a field of")]
    NoObject(String),
    /// There is nothing that could hold the field.
    #[error("{object} has nothing that could hold {pointer}")]
    NoPlace {
        /// `kind/name`.
        object: String,
        /// The path.
        pointer: String,
    },
}

impl FromStr for Set {
    type Err = MappingError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || MappingError::Shape(text.to_owned());
        let (object, rest) = text.split_once(':').ok_or_else(bad)?;
        let (pointer, value) = rest.split_once('=').ok_or_else(bad)?;
        let (kind, name) = object.split_once('/').ok_or_else(bad)?;
        if kind.is_empty() || name.is_empty() || !pointer.starts_with('/') || pointer.len() < 2 {
            return Err(bad());
        }
        // What is no JSON is a text.
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        let (kind, name) = (kind.to_ascii_lowercase(), name.to_owned());
        Ok(Self { kind, name, pointer: pointer.to_owned(), value })
    }
}

impl Mapping {
    /// What a namespace is called elsewhere.
    pub fn namespace<'a>(&'a self, name: &'a str) -> &'a str {
        self.namespaces.get(name).map_or(name, String::as_str)
    }

    /// Changes an object.
    pub(crate) fn apply(&self, object: &mut Value) {
        self.rename(object, "/metadata/namespace", &self.namespaces);
        match object["kind"].as_str() {
            Some("RoleBinding") => {
                for index in 0..items(&object["subjects"]).count() {
                    self.rename(object, &format!("/subjects/{index}/namespace"), &self.namespaces);
                }
            }
            Some("PersistentVolumeClaim") => {
                self.rename(object, "/spec/storageClassName", &self.storage_classes);
            }
            Some("StatefulSet" | "Deployment") => {
                for index in 0..items(&object["spec"]["volumeClaimTemplates"]).count() {
                    let template = format!("/spec/volumeClaimTemplates/{index}");
                    self.rename(object, &format!("{template}/spec/storageClassName"), &self.storage_classes);
                    self.rename(object, &format!("{template}/metadata/namespace"), &self.namespaces);
                }
                for list in ["containers", "initContainers"] {
                    for index in 0..items(&object["spec"]["template"]["spec"][list]).count() {
                        self.image(object, &format!("/spec/template/spec/{list}/{index}/image"));
                    }
                }
            }
            _ => {}
        }
    }

    fn rename(&self, object: &mut Value, pointer: &str, names: &BTreeMap<String, String>) {
        if let Some(place) = object.pointer_mut(pointer)
            && let Some(new) = place.as_str().and_then(|name| names.get(name))
        {
            *place = new.as_str().into();
        }
    }

    fn image(&self, object: &mut Value, pointer: &str) {
        let Some(place) = object.pointer_mut(pointer) else { return };
        let Some(image) = place.as_str() else { return };
        let fitting = self.images.iter().filter(|(old, _)| image.starts_with(old.as_str()));
        if let Some((old, new)) = fitting.max_by_key(|(old, _)| old.len()) {
            *place = format!("{new}{}", &image[old.len()..]).into();
        }
    }

    /// Sets the fields.
    pub(crate) fn set(&self, objects: &mut [Value]) -> Result<(), MappingError> {
        for set in &self.sets {
            let named = format!("{}/{}", set.kind, set.name);
            let wanted = |object: &&mut Value| Key::of(object).is_some_and(|key| key.to_string() == named);
            let object = objects.iter_mut().find(wanted);
            let object = object.ok_or_else(|| MappingError::NoObject(named.clone()))?;
            put(object, &set.pointer, set.value.clone())
                .ok_or_else(|| MappingError::NoPlace { object: named, pointer: set.pointer.clone() })?;
        }
        Ok(())
    }
}

/// Puts a value at a place whose parent is there.
fn put(object: &mut Value, pointer: &str, value: Value) -> Option<()> {
    if let Some(place) = object.pointer_mut(pointer) {
        *place = value;
        return Some(());
    }
    let (parent, last) = pointer.rsplit_once('/')?;
    let parent = object.pointer_mut(parent)?.as_object_mut()?;
    parent.insert(last.replace("~1", "/").replace("~0", "~"), value);
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_images_and_classes_are_those_of_elsewhere() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect()
        };
        let mapping = Mapping {
            namespaces: map(&[("shop", "shop-dr")]),
            storage_classes: map(&[("fast", "ssd")]),
            images: map(&[("a.example/", "b.example/"), ("a.example/db", "c.example/db")]),
            sets: Vec::new(),
        };
        let pod = json!({"containers": [{"image": "a.example/db:1"}, {"image": "a.example/web"}],
            "initContainers": [{"image": "other"}]});
        let mut set = json!({"kind": "StatefulSet", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"template": {"spec": pod}, "volumeClaimTemplates": [{"spec": {"storageClassName": "fast"}}]}});
        mapping.apply(&mut set);
        let pod = json!({"containers": [{"image": "c.example/db:1"}, {"image": "b.example/web"}],
            "initContainers": [{"image": "other"}]});
        let wanted = json!({"kind": "StatefulSet", "metadata": {"name": "a", "namespace": "shop-dr"},
            "spec": {"template": {"spec": pod}, "volumeClaimTemplates": [{"spec": {"storageClassName": "ssd"}}]}});
        assert_eq!(set, wanted);
        let mut binding = json!({"kind": "RoleBinding", "metadata": {"name": "a", "namespace": "shop"},
            "subjects": [{"name": "x", "namespace": "shop"}, {"name": "y", "namespace": "bank"}, {"name": "z"}]});
        mapping.apply(&mut binding);
        assert_eq!(binding["subjects"][0]["namespace"], "shop-dr");
        assert_eq!(binding["subjects"][1]["namespace"], "bank");
    }

    #[test]
    fn fields_are_set_where_they_can_be() {
        let object = json!({"kind": "StatefulSet", "metadata": {"name": "a"}, "spec": {"replicas": 3}});
        let try_set = |text: &str| {
            let mapping = Mapping { sets: vec![text.parse()?], ..Mapping::default() };
            let mut objects = vec![object.clone()];
            mapping.set(&mut objects).map(|()| objects.remove(0))
        };
        assert_eq!(try_set("statefulset/a:/spec/replicas=1").expect("set")["spec"]["replicas"], 1);
        let labelled = try_set("StatefulSet/a:/spec/x~1y=text=1").expect("set");
        assert_eq!(labelled["spec"]["x/y"], "text=1");
        for bad in
            ["statefulset/b:/spec/replicas=1", "statefulset/a:/no/where=1", "a:/b=1", "a/b=1", "a/b:c=1"]
        {
            assert!(try_set(bad).is_err(), "{bad}");
        }
    }
}
