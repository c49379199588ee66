//! Templates of configurations, filled in with the node's pod CIDR when the kubelet tells it.
//!
//! They are written as for containerd's `conf_template`, so that a node's file carries over: Go's template language, of which
//! the part is known that such files use. `{{.PodCIDR}}` is the first CIDR; `.PodCIDRRanges` are all and `.Routes` a default
//! route for each, for `{{range $i, $x := .Routes}}` … `{{end}}`; `{{if $i}}` … `{{else}}` … `{{end}}` holds for what is
//! neither 0 nor empty.

use std::{collections::HashMap, net::IpAddr, path::Path};

use serde_json::Value;

use super::config::NetworkList;
use crate::network::prefix::IpPrefix;

/// Most bytes that come out.
const MOST_BYTES: usize = 1 << 20;

/// Fills in `template`. What comes out is a valid configuration.
///
/// # Errors
///
/// What is wrong with the template, or with what came of it.
pub(crate) fn render(template: &str, cidrs: &[IpPrefix]) -> Result<String, String> {
    let mut actions = Actions { rest: template };
    let (nodes, end) = actions.block()?;
    if let Some(end) = end {
        return Err(format!("{{{{{end}}}}} stands outside of any range or if"));
    }
    let mut output = Output {
        text: String::new(),
        cidrs: cidrs.iter().map(ToString::to_string).collect(),
        routes: cidrs.iter().map(default_route).collect(),
        variables: HashMap::new(),
    };
    output.write(&nodes)?;
    match serde_json::from_str(&output.text) {
        Ok(Value::Object(source)) => {
            NetworkList::parse(source, Path::new(""))?;
            Ok(output.text)
        }
        Ok(_) => Err("what comes of it is not a JSON object".to_owned()),
        Err(error) => Err(format!("what comes of it is not JSON: {error}")),
    }
}

fn default_route(cidr: &IpPrefix) -> String {
    match cidr.address {
        IpAddr::V4(_) => "0.0.0.0/0".to_owned(),
        IpAddr::V6(_) => "::/0".to_owned(),
    }
}

enum Node<'a> {
    Text(&'a str),
    Print(&'a str),
    If {
        condition: &'a str,
        then: Vec<Node<'a>>,
        otherwise: Vec<Node<'a>>,
    },
    Range {
        index: Option<&'a str>,
        element: Option<&'a str>,
        list: &'a str,
        body: Vec<Node<'a>>,
    },
}

/// The template from where it has been read to.
struct Actions<'a> {
    rest: &'a str,
}

impl<'a> Actions<'a> {
    /// What stands before the next `end` or `else`, and which of them it was.
    fn block(&mut self) -> Result<(Vec<Node<'a>>, Option<&'a str>), String> {
        let mut nodes = Vec::new();
        loop {
            let Some((text, rest)) = self.rest.split_once("{{") else {
                nodes.push(Node::Text(self.rest));
                self.rest = "";
                return Ok((nodes, None));
            };
            let Some((action, rest)) = rest.split_once("}}") else {
                return Err("a {{ has no }}".to_owned());
            };
            // A hyphen at either end takes the white space beyond it away.
            let (action, text) = match action.strip_prefix("- ") {
                Some(action) => (action, text.trim_end()),
                None => (action, text),
            };
            let (action, rest) = match action.strip_suffix(" -") {
                Some(action) => (action, rest.trim_start()),
                None => (action, rest),
            };
            nodes.push(Node::Text(text));
            self.rest = rest;
            let action = action.trim();
            let (verb, operand) = action.split_once(' ').unwrap_or((action, ""));
            match verb {
                "end" | "else" if operand.is_empty() => return Ok((nodes, Some(verb))),
                "if" => nodes.push(self.condition(operand.trim())?),
                "range" => nodes.push(self.range(operand.trim())?),
                _ if is_operand(action) => nodes.push(Node::Print(action)),
                _ => return Err(format!("{{{{{action}}}}} is not known")),
            }
        }
    }

    fn condition(&mut self, condition: &'a str) -> Result<Node<'a>, String> {
        if !is_operand(condition) {
            return Err(format!("{{{{if {condition}}}}} is not known"));
        }
        let (then, mut end) = self.block()?;
        let mut otherwise = Vec::new();
        if end == Some("else") {
            (otherwise, end) = self.block()?;
        }
        if end != Some("end") {
            return Err(format!("{{{{if {condition}}}}} has no {{{{end}}}}"));
        }
        Ok(Node::If {
            condition,
            then,
            otherwise,
        })
    }

    fn range(&mut self, operand: &'a str) -> Result<Node<'a>, String> {
        let (names, list) = operand.split_once(":=").unwrap_or(("", operand));
        let (index, element) = match names.split_once(',') {
            Some((index, element)) => (Some(index.trim()), Some(element.trim())),
            None => (None, Some(names.trim()).filter(|name| !name.is_empty())),
        };
        let list = list.trim();
        let named = [index, element]
            .into_iter()
            .flatten()
            .all(|name| name.starts_with('$') && is_operand(name));
        if !named || !is_operand(list) {
            return Err(format!("{{{{range {operand}}}}} is not known"));
        }
        let (body, end) = self.block()?;
        if end != Some("end") {
            return Err(format!("{{{{range {operand}}}}} has no {{{{end}}}}"));
        }
        Ok(Node::Range {
            index,
            element,
            list,
            body,
        })
    }
}

/// `.`, `.Name` or `$name`.
fn is_operand(text: &str) -> bool {
    let name = text.strip_prefix(['.', '$']);
    name.is_some_and(|name| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }) && text != "$"
}

struct Output<'a> {
    text: String,
    cidrs: Vec<String>,
    routes: Vec<String>,
    variables: HashMap<&'a str, String>,
}

impl<'a> Output<'a> {
    fn write(&mut self, nodes: &[Node<'a>]) -> Result<(), String> {
        for node in nodes {
            match node {
                Node::Text(text) => self.text.push_str(text),
                Node::Print(operand) => {
                    let value = self.value(operand)?;
                    self.text.push_str(&value);
                }
                Node::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    let value = match self.list(condition) {
                        Some(list) => list.first().cloned().unwrap_or_default(),
                        None => self.value(condition)?,
                    };
                    let holds = !value.is_empty() && value != "0";
                    self.write(if holds { then } else { otherwise })?;
                }
                Node::Range {
                    index,
                    element,
                    list,
                    body,
                } => {
                    let Some(elements) = self.list(list) else {
                        return Err(format!("{list} is not a list"));
                    };
                    for (number, value) in elements.into_iter().enumerate() {
                        if let Some(index) = index {
                            self.variables.insert(index, number.to_string());
                        }
                        if let Some(element) = element {
                            self.variables.insert(element, value.clone());
                        }
                        self.variables.insert(".", value);
                        self.write(body)?;
                    }
                    self.variables.remove(".");
                }
            }
            if self.text.len() > MOST_BYTES {
                return Err(format!("more than {MOST_BYTES} bytes come of it"));
            }
        }
        Ok(())
    }

    fn list(&self, operand: &str) -> Option<Vec<String>> {
        match operand {
            ".PodCIDRRanges" => Some(self.cidrs.clone()),
            ".Routes" => Some(self.routes.clone()),
            _ => None,
        }
    }

    fn value(&self, operand: &str) -> Result<String, String> {
        let value = match operand {
            ".PodCIDR" => self.cidrs.first(),
            _ => self.variables.get(operand),
        };
        value
            .cloned()
            .ok_or_else(|| format!("{{{{{operand}}}}} stands for nothing here"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As clouds install it.
    const TEMPLATE: &str = r#"{
        "name": "k8s-pod-network", "cniVersion": "0.3.1",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local", "subnet": "{{.PodCIDR}}",
                "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
                "routes": [{{- range $i, $route := .Routes -}} {{if $i}},{{else}}{{end}} {"dst": "{{$route}}"} {{- end -}} ]
            }
        }]{{range .Routes}}, "route-{{.}}": 1{{end}}
    }"#;

    #[test]
    fn a_template_is_filled_in_for_one_family_and_two() {
        let cidrs = ["10.1.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
        let ipam = |cidrs: &[IpPrefix]| -> Value {
            let text = render(TEMPLATE, cidrs).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["route-0.0.0.0/0"], 1);
            value["plugins"][0]["ipam"].clone()
        };
        let two = ipam(&cidrs);
        assert_eq!(two["subnet"], "10.1.0.0/24");
        let ranges = serde_json::json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]);
        assert_eq!(two["ranges"], ranges);
        assert_eq!(
            two["routes"],
            serde_json::json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
        assert_eq!(
            ipam(&cidrs[..1])["routes"],
            serde_json::json!([{"dst": "0.0.0.0/0"}])
        );
    }

    #[test]
    fn what_is_wrong_with_a_template_is_said() {
        let cidrs = ["10.1.0.0/24".parse().unwrap()];
        for (template, part) in [
            ("{{.PodCIDR", "no }}"),
            ("{{printf .PodCIDR}}", "{{printf .PodCIDR}} is not known"),
            ("{{.Nothing}}", "{{.Nothing}} stands for nothing"),
            ("{{range .PodCIDR}}{{end}}", ".PodCIDR is not a list"),
            ("{{range .Routes}}", "{{range .Routes}} has no {{end}}"),
            ("{{if .PodCIDR}}{{else}}{{else}}{{end}}", "has no {{end}}"),
            ("{{end}}", "{{end}} stands outside"),
            ("{{if eq 1 2}}{{end}}", "{{if eq 1 2}} is not known"),
            ("text", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"name": "{{.PodCIDR}}"}"#, "name"),
        ] {
            let fault = render(template, &cidrs).unwrap_err();
            assert!(fault.contains(part), "{template}: {fault}");
        }
    }
}
