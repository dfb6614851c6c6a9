//! What a graph looks like: as data, drawn as text, and as Mermaid.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The nodes and edges of a graph, as a worker registers them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// In the order of their declaration: a node comes after those whose results it takes. The first is the run's input.
    pub nodes: Vec<ShapeNode>,
    /// The index of the node whose result is the run's.
    pub output: usize,
}

/// A node of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeNode {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: ShapeKind,
    /// The indexes of the nodes whose results it takes.
    pub inputs: Vec<usize>,
    /// The type of its result, as the code names it, without paths.
    pub gives: String,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShapeKind {
    /// The run's input.
    Input,
    /// One step.
    Step,
    /// A sequence of durable calls.
    Sequence,
}

impl ShapeNode {
    pub(super) fn new<T>(name: &str, kind: ShapeKind, inputs: Vec<usize>) -> Self {
        ShapeNode { name: name.to_owned(), kind, inputs, gives: short_name::<T>() }
    }
}

/// The name of a type without the paths of its parts.
pub(crate) fn short_name<T>() -> String {
    let full = std::any::type_name::<T>();
    let mut short = String::with_capacity(full.len());
    let mut word = 0;
    for (at, c) in full.char_indices() {
        if !(c.is_alphanumeric() || c == '_' || c == ':') {
            short.push_str(last(&full[word..at]));
            short.push(c);
            word = at + c.len_utf8();
        }
    }
    short.push_str(last(&full[word..]));
    short
}

fn last(path: &str) -> &str {
    path.rsplit("::").next().unwrap_or(path)
}

impl Shape {
    /// The graph as text: a line a node, with what it gives and takes, and the edges at the left.
    pub fn text(&self) -> String {
        let mut drawing = Drawing::default();
        for (index, node) in self.nodes.iter().enumerate() {
            let takers: Vec<usize> =
                (0..self.nodes.len()).filter(|taker| self.nodes[*taker].inputs.contains(&index)).collect();
            let mut label = format!("{}: {}", node.name, node.gives);
            let taken: Vec<&str> = node.inputs.iter().map(|input| self.node(*input).0).collect();
            if !taken.is_empty() {
                let _ = write!(label, "  ← {}", taken.join(", "));
            }
            if index == self.output {
                label.push_str("  → the run's result");
            }
            drawing.node(index, &takers, &label);
        }
        drawing.text
    }

    /// The graph as a Mermaid flowchart.
    pub fn mermaid(&self) -> String {
        let mut out = String::from("flowchart TD\n");
        for (index, node) in self.nodes.iter().enumerate() {
            let (open, close) = match node.kind {
                ShapeKind::Input => ("([", "])"),
                ShapeKind::Step => ("[", "]"),
                ShapeKind::Sequence => ("[[", "]]"),
            };
            let _ = writeln!(out, "    n{index}{open}\"{}\"{close}", escaped(&node.name));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            for input in &node.inputs {
                let gives = escaped(self.node(*input).1);
                let _ = writeln!(out, "    n{input} -->|\"{gives}\"| n{index}");
            }
        }
        let gives = escaped(self.node(self.output).1);
        let _ = writeln!(out, "    n{} --> result([\"{gives}\"])", self.output);
        out
    }

    /// The name of a node and what it gives. A shape is read from the database, where any worker may have written of nodes that
    /// there are not.
    fn node(&self, index: usize) -> (&str, &str) {
        self.nodes.get(index).map_or(("?", "?"), |node| (&node.name, &node.gives))
    }
}

/// Text within the quotes of a label.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("#quot;"),
            '<' => out.push_str("#lt;"),
            '>' => out.push_str("#gt;"),
            '#' => out.push_str("#35;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Lanes at the left of the lines, each an edge on its way to the node that takes it.
#[derive(Default)]
struct Drawing {
    lanes: Vec<Option<usize>>,
    text: String,
}

impl Drawing {
    fn node(&mut self, node: usize, takers: &[usize], label: &str) {
        let arriving: Vec<usize> =
            (0..self.lanes.len()).filter(|lane| self.lanes[*lane] == Some(node)).collect();
        let lane = arriving.first().copied().unwrap_or_else(|| self.free(0));
        if arriving.len() > 1 {
            self.line(lane, &arriving[1..], '┴', '╯');
        }
        arriving.iter().for_each(|lane| self.lanes[*lane] = None);
        self.lanes[lane] = Some(node);
        let lanes: Vec<String> = (0..self.lanes.len())
            .map(|other| match self.lanes[other] {
                _ if other == lane => "●".to_owned(),
                Some(_) => "│".to_owned(),
                None => " ".to_owned(),
            })
            .collect();
        let _ = writeln!(self.text, "{}  {label}", lanes.join(" ").trim_end());
        self.lanes[lane] = takers.first().copied();
        let mut leaving = Vec::new();
        for taker in takers.iter().skip(1) {
            let free = self.free(lane);
            self.lanes[free] = Some(*taker);
            leaving.push(free);
        }
        if !leaving.is_empty() {
            self.line(lane, &leaving, '┬', '╮');
        }
        while self.lanes.last().is_some_and(Option::is_none) {
            self.lanes.pop();
        }
    }

    /// A lane that nothing is in, at or right of `from`.
    fn free(&mut self, from: usize) -> usize {
        let free = (from..self.lanes.len()).find(|lane| self.lanes[*lane].is_none());
        free.unwrap_or_else(|| {
            self.lanes.push(None);
            self.lanes.len() - 1
        })
    }

    /// A line between two nodes: from a lane to others at its right.
    fn line(&mut self, lane: usize, ends: &[usize], inner: char, outer: char) {
        let far = ends.iter().copied().max().unwrap_or(lane);
        let mut line = String::new();
        for other in 0..self.lanes.len() {
            line.push(match other {
                _ if other == lane => '├',
                _ if other == far => outer,
                _ if ends.contains(&other) => inner,
                _ if self.lanes[other].is_some() => '│',
                _ if (lane..far).contains(&other) => '─',
                _ => ' ',
            });
            line.push(if (lane..far).contains(&other) { '─' } else { ' ' });
        }
        let _ = writeln!(self.text, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(nodes: &[(&str, &[usize])]) -> Shape {
        let nodes: Vec<ShapeNode> = nodes
            .iter()
            .map(|(name, inputs)| ShapeNode::new::<u8>(name, ShapeKind::Step, inputs.to_vec()))
            .collect();
        Shape { output: nodes.len() - 1, nodes }
    }

    #[test]
    fn a_graph_is_drawn_with_its_edges() {
        let drawn = shape(&[
            ("input", &[]),
            ("price", &[0]),
            ("stock", &[0]),
            ("rates", &[]),
            ("charge", &[0, 1, 3]),
            ("ship", &[2, 4]),
        ]);
        expect_test::expect![[r#"
            ●  input: u8
            ├─┬─╮
            ● │ │  price: u8  ← input
            │ ● │  stock: u8  ← input
            │ │ │ ●  rates: u8
            ├─│─┴─╯
            ● │  charge: u8  ← input, price, rates
            ├─╯
            ●  ship: u8  ← stock, charge  → the run's result
        "#]]
        .assert_eq(&drawn.text());
        expect_test::expect![[r#"
            flowchart TD
                n0["input"]
                n1["price"]
                n2["stock"]
                n3["rates"]
                n4["charge"]
                n5["ship"]
                n0 -->|"u8"| n1
                n0 -->|"u8"| n2
                n0 -->|"u8"| n4
                n1 -->|"u8"| n4
                n3 -->|"u8"| n4
                n2 -->|"u8"| n5
                n4 -->|"u8"| n5
                n5 --> result(["u8"])
        "#]]
        .assert_eq(&drawn.mermaid());
    }

    #[test]
    fn a_type_is_named_without_paths() {
        assert_eq!(short_name::<Option<Vec<std::time::Duration>>>(), "Option<Vec<Duration>>");
        assert_eq!(short_name::<(u8, &'static str)>(), "(u8, &str)");
    }
}
