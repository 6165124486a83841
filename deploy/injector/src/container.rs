//! The containers and volumes that are added.
//!
//! The sidecar is the last init container, with `restartPolicy: Always`: it starts before the application and is stopped
//! after it, so that its final cut has the application's last write; and it is stopped before sidecars that stand before
//! it, such as a mesh's proxy, which it may need to say so. What fills empty volumes is the first init container: nobody
//! has touched a volume before it.
//!
//! There is a liveness probe and no other. A readiness probe would take the application out of its Service when
//! replication is in trouble, and a startup probe would hold back its start.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource, HTTPGetAction,
        HostPathVolumeSource, ObjectFieldSelector, PodSpec, Probe, ProjectedVolumeSource,
        ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext,
        ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};

use crate::{
    annotations::{Consistency, Restore, Tracker, Wishes, merge},
    claims::{Claim, Claims},
    config::{Config, IdentityFrom},
    names,
    user::User,
};

/// What the containers are made of.
pub(crate) struct Recipe<'a> {
    pub(crate) claims: &'a Claims,
    pub(crate) wishes: &'a Wishes,
    pub(crate) config: &'a Config,
    pub(crate) receiver: &'a str,
    pub(crate) port: i32,
}

impl Recipe<'_> {
    pub(crate) fn sidecar(&self) -> Container {
        let wishes = self.wishes;
        let mut args = vec!["sidecar".to_owned()];
        for claim in &self.claims.all {
            args.push(argument("volume", &format!("{}={}", claim.name, literal(&claim.path))));
            let left_out = |glob: &String| argument("exclude", &format!("{}={}", claim.name, literal(glob)));
            args.extend(wishes.exclude.iter().map(left_out));
        }
        args.extend([
            argument("receiver", &literal(self.receiver)),
            argument("identity", names::IDENTITY_DIR),
            self.issuer().map_or_else(
                || "--wait-for-identity".to_owned(),
                |from| argument("identity-from", &from.url),
            ),
            argument("http", &format!("0.0.0.0:{}", self.port)),
            argument("log-format", "json"),
        ]);
        match wishes.tracker {
            Tracker::Auto => {}
            Tracker::Exact => args.push(argument("tracker", "exact")),
            Tracker::Inotify => args.push(argument("tracker", "inotify")),
        }
        match wishes.consistency {
            Consistency::Crash => {}
            Consistency::Pause => args.push(argument("escalate", "pause")),
            Consistency::App => args.push(argument("escalate", "hooks")),
        }
        if let Some((quiesce, unquiesce)) = &wishes.hooks {
            args.push(argument("quiesce-hook", &literal(quiesce)));
            args.push(argument("unquiesce-hook", &literal(unquiesce)));
        }
        if wishes.stop_on_fence {
            args.push(argument("on-fence", "stop"));
        }
        if let Some(epoch) = wishes.epoch {
            args.push(argument("epoch", &epoch.to_string()));
        }
        let mut mounts = self.mounts(true);
        mounts.push(mount(names::IDENTITY_VOLUME, names::IDENTITY_DIR, None, self.issuer().is_none()));
        if self.issuer().is_some() {
            mounts.push(mount(names::TOKEN_VOLUME, names::TOKEN_DIR, None, true));
        }
        if wishes.tracker == Tracker::Exact {
            mounts.push(mount(names::TRACEFS_VOLUME, names::TRACEFS_DIR, None, true));
        }
        let mut container = self.container(names::SIDECAR);
        let mut env = container.env.take().unwrap_or_default();
        if let Some(from) = self.issuer() {
            env.push(authorities(from));
        }
        Container {
            args: Some(args),
            liveness_probe: Some(self.alive()),
            ports: Some(vec![ContainerPort {
                container_port: self.port,
                name: Some("tidelock".to_owned()),
                protocol: Some("TCP".to_owned()),
                ..ContainerPort::default()
            }]),
            restart_policy: Some("Always".to_owned()),
            security_context: Some(self.sidecar_security()),
            volume_mounts: Some(mounts),
            env: (!env.is_empty()).then_some(env),
            ..container
        }
    }

    /// What fills empty volumes, if that was asked for.
    pub(crate) fn restore(&self) -> Option<Container> {
        let at = match &self.wishes.restore {
            Restore::Never => return None,
            Restore::IfEmpty => "latest",
            Restore::Time(time) => time,
        };
        let (first, others) = self.claims.all.split_first()?;
        let source = |claim: &Claim| match (&self.wishes.restore_tenant, claim.name.split_once('/')) {
            (Some(tenant), Some((_, name))) => format!("{tenant}/{name}"),
            _ => claim.name.clone(),
        };
        let mut args = vec!["restore".to_owned(), source(first)];
        args.push(argument("to", &literal(&first.path)));
        let also = |claim: &Claim| argument("also", &format!("{}={}", source(claim), literal(&claim.path)));
        args.extend(others.iter().map(also));
        args.extend([
            "--if-empty".to_owned(),
            argument("at", at),
            argument("receiver", &literal(self.receiver)),
            argument("identity", names::IDENTITY_DIR),
        ]);
        let issuer = self.restore_issuer();
        let mut mounts = self.mounts(false);
        mounts.push(mount(names::RESTORE_IDENTITY_VOLUME, names::IDENTITY_DIR, None, issuer.is_none()));
        let mut container = self.container(names::RESTORE);
        if let Some(from) = issuer {
            args.push(argument("identity-from", &from.url));
            mounts.push(mount(names::TOKEN_VOLUME, names::TOKEN_DIR, None, true));
            container.env.get_or_insert_default().push(authorities(from));
        }
        let needs = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"];
        Some(Container {
            args: Some(args),
            security_context: Some(security(&self.claims.user, self.claims.user.own_of(&needs))),
            volume_mounts: Some(mounts),
            ..container
        })
    }

    /// The pod's volumes that the containers need beside its own.
    pub(crate) fn volumes(&self) -> Vec<Volume> {
        let configured = &self.config;
        let identity = self.wishes.identity_secret.as_ref().unwrap_or(&configured.identity_secret);
        let mut volumes = match self.issuer() {
            Some(_) => vec![memory(names::IDENTITY_VOLUME)],
            // A Secret that is not there yet holds the sidecar up, not the pod.
            None => vec![secret(names::IDENTITY_VOLUME, identity, true)],
        };
        if self.wishes.restore != Restore::Never {
            let identity = self.wishes.restore_secret.as_ref().unwrap_or(&configured.restore_secret);
            volumes.push(match self.restore_issuer() {
                Some(_) => memory(names::RESTORE_IDENTITY_VOLUME),
                None => secret(names::RESTORE_IDENTITY_VOLUME, identity, false),
            });
        }
        if self.issuer().or(self.restore_issuer()).is_some() {
            volumes.push(token(names::TOKEN_VOLUME));
        }
        if self.wishes.tracker == Tracker::Exact {
            volumes.push(Volume {
                name: names::TRACEFS_VOLUME.to_owned(),
                host_path: Some(HostPathVolumeSource {
                    path: names::TRACEFS_DIR.to_owned(),
                    type_: Some("Directory".to_owned()),
                }),
                ..Volume::default()
            });
        }
        volumes
    }

    /// Who gives the sidecar its identity, if that is no Secret.
    fn issuer(&self) -> Option<&IdentityFrom> {
        self.config.identity_from.as_ref().filter(|_| self.wishes.identity_secret.is_none())
    }

    /// Who lets it read its points. Those of another tenant nobody gives for a token: its operator does, by a Secret.
    fn restore_issuer(&self) -> Option<&IdentityFrom> {
        let wishes = self.wishes;
        let own = wishes.restore != Restore::Never && wishes.restore_tenant.is_none();
        self.config.identity_from.as_ref().filter(|_| own && wishes.restore_secret.is_none())
    }

    fn container(&self, name: &str) -> Container {
        let pod_name = self.claims.all.iter().any(|claim| claim.name.contains(names::POD_VARIABLE));
        let mut env = Vec::new();
        if pod_name {
            let field = ObjectFieldSelector { api_version: None, field_path: "metadata.name".to_owned() };
            let source = EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() };
            let name = names::POD_VARIABLE.to_owned();
            env.push(EnvVar { name, value: None, value_from: Some(source) });
        }
        if let Some(level) = &self.wishes.log_level {
            let name = "TIDELOCK_LOG".to_owned();
            env.push(EnvVar { name, value: Some(level.clone()), value_from: None });
        }
        Container {
            name: name.to_owned(),
            image: Some(self.wishes.image.clone().unwrap_or_else(|| self.config.image.clone())),
            image_pull_policy: Some(self.config.pull_policy.clone()),
            env: (!env.is_empty()).then_some(env),
            resources: Some(self.resources()),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            ..Container::default()
        }
    }

    fn mounts(&self, read_only: bool) -> Vec<VolumeMount> {
        let of = |claim: &Claim| mount(&claim.volume, &claim.path, claim.sub_path.clone(), read_only);
        self.claims.all.iter().map(of).collect()
    }

    fn resources(&self) -> ResourceRequirements {
        let merged = merge(&self.wishes.resources, &self.config.resources);
        let map = |cpu: Option<String>, memory: Option<String>| {
            let named = [("cpu", cpu), ("memory", memory)];
            let set = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), Quantity(value?))));
            let set: BTreeMap<_, _> = set.collect();
            (!set.is_empty()).then_some(set)
        };
        ResourceRequirements {
            requests: map(merged.cpu_request, merged.memory_request),
            limits: map(merged.cpu_limit, merged.memory_limit),
            claims: None,
        }
    }

    fn alive(&self) -> Probe {
        let get = HTTPGetAction {
            path: Some("/healthz".to_owned()),
            port: IntOrString::Int(self.port),
            ..HTTPGetAction::default()
        };
        Probe {
            http_get: Some(get),
            initial_delay_seconds: Some(10),
            period_seconds: Some(10),
            timeout_seconds: Some(5),
            failure_threshold: Some(6),
            ..Probe::default()
        }
    }

    fn sidecar_security(&self) -> SecurityContext {
        let user = &self.claims.user;
        // The processes of a container of root may be another user's, and so may its files.
        let stops = self.wishes.consistency == Consistency::Pause || self.wishes.stop_on_fence;
        let needs: &[&str] = if stops { &["DAC_OVERRIDE", "KILL"] } else { &["DAC_OVERRIDE"] };
        if self.wishes.tracker != Tracker::Exact {
            return security(user, user.own_of(needs));
        }
        // A program of another user has no capabilities, whatever its container was given, and tracefs is root's.
        let root = User { uid: 0, ..user.clone() };
        let mut capabilities = vec!["PERFMON".to_owned()];
        if user.is_root() {
            capabilities.extend(user.own_of(needs));
        } else {
            capabilities.push("DAC_READ_SEARCH".to_owned());
            capabilities.extend(stops.then(|| "KILL".to_owned()));
        }
        security(&root, capabilities)
    }
}

fn authorities(from: &IdentityFrom) -> EnvVar {
    let (name, value) = (names::AUTHORITY_VARIABLE.to_owned(), Some(from.authorities.clone()));
    EnvVar { name, value, value_from: None }
}

/// Pod Security *restricted*, as far as the user permits.
fn security(user: &User, capabilities: Vec<String>) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: (!capabilities.is_empty()).then_some(capabilities),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_group: user.gid,
        run_as_non_root: Some(!user.is_root()),
        run_as_user: Some(user.uid),
        se_linux_options: user.selinux.as_deref().cloned(),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

/// The first port from 9902 on that no container says it uses.
pub(crate) fn free_port(pod: &PodSpec) -> i32 {
    let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let taken: Vec<i32> = ports.map(|port| port.container_port).collect();
    (names::HTTP_PORT..).find(|port| !taken.contains(port)).unwrap_or(names::HTTP_PORT)
}

fn argument(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

/// Kubernetes puts variables into arguments; this is none.
fn literal(text: &str) -> String {
    text.replace("$(", "$$(")
}

fn mount(volume: &str, path: &str, sub_path: Option<String>, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        sub_path,
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// A volume for keys, which are never on a disk.
fn memory(volume: &str) -> Volume {
    let size = Some(Quantity("1Mi".to_owned()));
    Volume {
        name: volume.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: size }),
        ..Volume::default()
    }
}

/// A token of the pod's service account that is good for nothing but an identity.
fn token(volume: &str) -> Volume {
    let token = ServiceAccountTokenProjection {
        audience: Some(names::TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(3600),
        path: "token".to_owned(),
    };
    let source = VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    Volume {
        name: volume.to_owned(),
        projected: Some(ProjectedVolumeSource { sources: Some(vec![source]), ..Default::default() }),
        ..Volume::default()
    }
}

fn secret(volume: &str, name: &str, optional: bool) -> Volume {
    Volume {
        name: volume.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(name.to_owned()),
            optional: optional.then_some(true),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}
