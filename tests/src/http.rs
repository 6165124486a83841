//! The few lines of HTTP that status and metrics need.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

/// The longest a local endpoint may take to answer.
const LIMIT: Duration = Duration::from_secs(5);

/// GETs `path`: status code and body; `None` if nobody answers.
pub fn get(address: &str, path: &str) -> Option<(u16, String)> {
    ask(address, &format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// POSTs a JSON document to `path`: status code and body of the answer; `None` if nobody answers.
pub fn post(address: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let head = format!(
        "POST {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}",
        body.len()
    );
    ask(address, &format!("{head}\r\n\r\n{body}"))
}

pub(crate) fn ask(address: &str, question: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(question.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split_ascii_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}

/// GETs a JSON document.
pub fn json(address: &str, path: &str) -> Option<Value> {
    let (_, body) = get(address, path)?;
    serde_json::from_str(&body).ok()
}

/// The sum over all label sets of one sample in the Prometheus text format.
pub fn sample(metrics: &str, name: &str) -> Option<f64> {
    let values = metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let bare = key.split('{').next()?;
        if bare == name { value.parse::<f64>().ok() } else { None }
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_over_labels() {
        let text = "# TYPE x counter\nx_total{a=\"1\"} 2\nx_total{a=\"2\"} 3\nx_total_more 9\n";
        assert_eq!(sample(text, "x_total"), Some(5.0));
        assert_eq!(sample(text, "y_total"), None);
    }
}
