//! Workloads as the receiver knows them: by what was recorded of them, so that no cluster is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tidelock_cluster::{identity::OBJECTS_VOLUME, jobs::Worker};
use tidelock_failover::{
    Access, At, FailoverError, PromoteOptions, VolumePath, cat, fence_without_copy, status,
};
use tidelock_manifests::{Document, Key, Mapping, Set, file_name};
use tidelock_proto::VolumeName;

use super::{
    exit::{FAILED, Failure},
    source::Source,
};

/// The longest record of a workload, in bytes.
const DOCUMENT_MAX_BYTES: u64 = 64 << 20;

/// What is different in the other cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is different there")]
pub(crate) struct Elsewhere {
    /// A storage class is called otherwise there
    #[arg(long, value_name = "OLD=NEW", value_parser = pair)]
    storage_class_map: Vec<(String, String)>,
    /// Images that begin so begin otherwise there
    #[arg(long, value_name = "OLD=NEW", value_parser = pair)]
    image_map: Vec<(String, String)>,
    /// A field is otherwise there: KIND/NAME:/path/to/field=VALUE
    #[arg(long, value_name = "FIELD=VALUE")]
    set: Vec<Set>,
}

impl Elsewhere {
    /// With these names of namespaces.
    pub(crate) fn mapping(&self, namespaces: &[(String, String)]) -> Mapping {
        let map = |pairs: &[(String, String)]| pairs.iter().cloned().collect::<BTreeMap<_, _>>();
        Mapping {
            namespaces: map(namespaces),
            storage_classes: map(&self.storage_class_map),
            images: map(&self.image_map),
            sets: self.set.clone(),
        }
    }
}

/// What Jobs in the cluster are made with, which fill and copy volumes there.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Jobs there")]
pub(crate) struct Works {
    /// The image of this program
    #[arg(long, value_name = "IMAGE", default_value_t = tidelock_injector::Config::default().image)]
    image: String,
    /// The receiver as pods there reach it, if not as this command does
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) receiver_there: Option<String>,
    /// The Secret of the workload's namespace there with the identity of the tenant's operator
    #[arg(long, value_name = "NAME", default_value_t = tidelock_injector::Config::default().restore_secret)]
    operator_secret: String,
}

impl Works {
    pub(crate) fn worker(&self, source: &Source) -> Result<Worker, Failure> {
        let receiver = self.receiver_there.as_deref().or_else(|| source.receiver());
        let missing = "say how pods there reach the receiver: --receiver-there HOST:PORT";
        let receiver = receiver.ok_or_else(|| Failure::usage(missing))?;
        let (image, secret) = (self.image.clone(), self.operator_secret.clone());
        Ok(Worker { image, receiver: receiver.to_owned(), secret })
    }
}

/// A Secret with the files of an identity directory.
pub(crate) fn secret(directory: &Path, name: &str, namespace: &str) -> Result<Value, Failure> {
    let mut data = serde_json::Map::new();
    for file in ["tls.crt", "tls.key", "ca.crt"] {
        let path = directory.join(file);
        let bytes =
            fs::read(&path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
        data.insert(file.to_owned(), STANDARD.encode(bytes).into());
    }
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data,
        "metadata": {"name": name, "namespace": namespace}}))
}

pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("write OLD=NEW")?;
    if old.is_empty() || new.is_empty() {
        return Err("write OLD=NEW".to_owned());
    }
    Ok((old.to_owned(), new.to_owned()))
}

/// The record of a workload that was in force at an instant.
pub(crate) fn record(access: &Access, namespace: &str, workload: &Key, at: &At) -> Result<Document, Failure> {
    let volume = VolumeName::new(namespace, OBJECTS_VOLUME).map_err(Failure::usage)?;
    let path = VolumePath::parse(file_name(workload).as_bytes()).map_err(Failure::usage)?;
    let mut text = Vec::new();
    let read = cat(access, &volume, at, &path, 0..DOCUMENT_MAX_BYTES, &mut text);
    read.map_err(|error| match error {
        FailoverError::NoVolume { .. } => Failure::usage(format!(
            "nothing was recorded of namespace {namespace}: name another with --namespace, or write volumes as TENANT/NAME \
             (a recorder has to run in the cluster of the workload)"
        )),
        error => Failure::failover(error),
    })?;
    Document::parse(&text).map_err(|error| Failure::new(FAILED, error))
}

/// The record that was in force at the point, the volumes of it that there are, and claims that were never protected: first whatever names
/// the volumes, then that of their point's time.
pub(crate) fn find(
    access: &Access,
    namespace: &str,
    workload: &Key,
    options: &PromoteOptions,
) -> Result<(Document, Vec<VolumeName>, Vec<String>), Failure> {
    let about = match &options.at {
        at @ (At::Time(_) | At::Ago(_)) => at.clone(),
        At::Latest | At::Point(_) | At::Tag(_) => At::Latest,
    };
    let near = record(access, namespace, workload, &about)?;
    let (known, _) = volumes(access, &near)?;
    let document = match known.first() {
        Some(first) => {
            let looked = fence_without_copy(access, first, options, true).map_err(Failure::failover)?;
            record(access, namespace, workload, &At::Time(looked.point.time_ns))?
        }
        None => near,
    };
    let (known, unprotected) = volumes(access, &document)?;
    Ok((document, known, unprotected))
}

/// The workload's volumes that the receiver has points of, and its claims that it has none of: those were never protected.
pub(crate) fn volumes(
    access: &Access,
    document: &Document,
) -> Result<(Vec<VolumeName>, Vec<String>), Failure> {
    let known = status(access, None).map_err(Failure::failover)?;
    let known: BTreeSet<&str> = known.iter().map(|volume| volume.volume.as_str()).collect();
    let (mut volumes, mut unprotected) = (Vec::new(), Vec::new());
    for one in &document.volumes {
        match known.contains(one.volume.to_string().as_str()) {
            true => volumes.push(one.volume.clone()),
            false => unprotected.push(one.claim.clone()),
        }
    }
    Ok((volumes, unprotected))
}

/// The volumes of a workload as it was recorded last, for commands that look. What was never protected is named.
pub(crate) fn volumes_of(
    access: &Access,
    namespace: &str,
    workload: &Key,
) -> Result<Vec<VolumeName>, Failure> {
    let document = record(access, namespace, workload, &At::Latest)?;
    let (volumes, unprotected) = volumes(access, &document)?;
    if volumes.is_empty() {
        return Err(Failure::new(
            FAILED,
            anyhow::anyhow!("{workload} has no volume that the receiver has points of"),
        ));
    }
    for claim in unprotected {
        eprintln!("tidelock: claim {claim} of {workload} was never protected");
    }
    Ok(volumes)
}
