//! One figure, as `hack/bench` gathers them.

use std::time::Duration;

use serde_json::{Value, json};

/// A median with its unit; see `hack/bench` for the fields of the JSON object that it is printed as.
#[derive(Debug)]
pub struct Figure(Value);

impl Figure {
    /// The median of `samples`, of which there is at least one.
    pub fn of(name: &str, unit: &str, samples: &[f64]) -> Self {
        let sorted = sorted(samples);
        Self(json!({
            "name": name,
            "value": middle(&sorted),
            "unit": unit,
            "samples": samples.len(),
            "lowest": sorted.first(),
            "highest": sorted.last(),
        }))
    }

    /// The median of times, in seconds.
    pub fn seconds(name: &str, samples: &[Duration]) -> Self {
        Self::of(name, "s", &in_seconds(samples))
    }

    /// What it is to be at most.
    #[must_use]
    pub fn goal(self, most: f64) -> Self {
        self.with("goal", json!(most))
    }

    /// Sets the median of `samples` of a peer beside it.
    #[must_use]
    pub fn beside(self, peer: &str, samples: &[f64]) -> Self {
        self.with("peer", json!(peer))
            .with("peer_value", json!(middle(&sorted(samples))))
    }

    /// What its ratio to the peer is to be at most.
    #[must_use]
    pub fn goal_ratio(self, most: f64) -> Self {
        self.with("goal_ratio", json!(most))
    }

    /// What its ratio to the peer is to be at least.
    #[must_use]
    pub fn goal_ratio_least(self, least: f64) -> Self {
        self.with("goal_ratio_least", json!(least))
    }

    /// Prints it.
    pub fn print(&self) {
        println!("{}", self.0);
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        if let Some(fields) = self.0.as_object_mut() {
            fields.insert(key.to_owned(), value);
        }
        self
    }
}

/// Times as numbers.
pub fn in_seconds(samples: &[Duration]) -> Vec<f64> {
    samples.iter().map(Duration::as_secs_f64).collect()
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The middle one, or the mean of the two in the middle.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().expect("a figure has samples");
    if sorted.len() % 2 == 1 {
        at(half)
    } else {
        f64::midpoint(at(half - 1), at(half))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_a_median() {
        let field = |samples: &[f64]| Figure::of("x", "s", samples).0["value"].as_f64();
        assert_eq!(field(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(field(&[4.0, 100.0, 2.0, 1.0]), Some(3.0));
    }
}
