//! A plot of cumulative distributions as SVG, legible on light and dark backgrounds.

use std::fmt::Write;

use super::statistics::percentile;

/// Size of the picture, and of the area within the axes, in pixels.
const SIZE: (f64, f64) = (720.0, 400.0);
const LEFT: f64 = 64.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 56.0;

/// Colours of the lines, in the order of the curves; `STYLE` has their lighter forms.
const STYLE: &str = "
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 15px; font-weight: 600; }
  .axis { stroke: #59636e; fill: none; }
  .grid { stroke: #d1d9e0; }
  .curve { fill: none; stroke-width: 2; }
  .c0 { stroke: #0550ae; } .c1 { stroke: #bc4c00; stroke-dasharray: 6 3; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .axis { stroke: #9198a1; } .grid { stroke: #3d444d; }
    .c0 { stroke: #58a6ff; } .c1 { stroke: #f0883e; }
  }";

/// The cumulative distribution of ascending samples in milliseconds.
pub struct Curve<'a> {
    pub name: &'a str,
    pub ascending: &'a [f64],
}

/// Draws up to two curves. The x axis ends where all curves have reached 99 %.
pub fn distribution(title: &str, curves: &[Curve]) -> String {
    let most = curves.iter().filter_map(|curve| percentile(curve.ascending, 99.0)).fold(0.0, f64::max);
    let step = step(most);
    let end = (most / step).ceil().max(1.0) * step;
    let (width, height) = (SIZE.0 - LEFT - RIGHT, SIZE.1 - TOP - BOTTOM);
    let x = |value: f64| LEFT + value / end * width;
    let y = |percent: f64| TOP + (1.0 - percent / 100.0) * height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>{STYLE}\n</style>\n<text class=\"title\" x=\"{LEFT}\" y=\"22\">{title}</text>\n",
        SIZE.0, SIZE.1
    );
    let mut put = |line: String| writeln!(svg, "{line}").unwrap_or_default();
    for percent in [0.0, 25.0, 50.0, 75.0, 99.0] {
        let y = y(percent);
        put(format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", SIZE.0 - RIGHT));
        put(format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>", LEFT - 8.0, y + 4.0));
    }
    for tick in 0..=(end / step).round() as usize {
        let value = tick as f64 * step;
        let (x, y) = (x(value), y(0.0));
        put(format!("<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{y:.1}\" y2=\"{:.1}\"/>", y + 5.0));
        put(format!("<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", y + 20.0, label(value, step)));
    }
    put(format!(
        "<path class=\"axis\" d=\"M{LEFT},{TOP}V{:.1}H{:.1}\"/>\n<text x=\"{:.1}\" y=\"{:.1}\" \
         text-anchor=\"middle\">time of one run, milliseconds</text>\n<text transform=\"translate(16,{:.1}) rotate(-90)\" \
         text-anchor=\"middle\">share of runs that took at most this time</text>",
        y(0.0),
        SIZE.0 - RIGHT,
        LEFT + width / 2.0,
        SIZE.1 - 12.0,
        TOP + height / 2.0
    ));
    for (number, curve) in curves.iter().enumerate() {
        let points = (0..=200).map(|n| f64::from(n) / 2.0).filter_map(|percent| {
            let value = percentile(curve.ascending, percent)?;
            (value <= end).then(|| format!("{:.1},{:.1}", x(value), y(percent)))
        });
        put(format!("<polyline class=\"curve c{number}\" points=\"{}\"/>", points.collect::<Vec<_>>().join(" ")));
        let (x, y) = (SIZE.0 - RIGHT - 330.0, y(0.0) - 46.0 + 20.0 * number as f64);
        put(format!(
            "<line class=\"curve c{number}\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
            x + 32.0
        ));
        put(format!("<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 40.0, y + 4.0, curve.name));
    }
    svg.push_str("</svg>\n");
    svg
}

/// The distance of the ticks of an axis that ends at `most`: 1, 2 or 5 times a power of ten, for at most ten ticks.
fn step(most: f64) -> f64 {
    let rough = most.max(1e-6) / 10.0;
    let power = 10_f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(power)
}

fn label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticks_are_round_numbers_and_at_most_ten() {
        for (most, expected) in [(10.0, 1.0), (1.5, 0.2), (0.9, 0.1), (43.0, 5.0), (99.0, 10.0), (101.0, 20.0)] {
            let step = step(most);
            assert!((step - expected).abs() < 1e-9, "{most}: {step}");
            assert!(most / step <= 10.0);
        }
        assert_eq!((label(0.4, 0.2), label(5.0, 5.0)), ("0.4".to_owned(), "5".to_owned()));
    }

    #[test]
    fn a_plot_has_a_line_and_a_name_for_each_curve() {
        let (ours, floor) = ([1.0, 1.2, 1.4, 9.0], [0.8, 0.9, 1.0, 1.1]);
        let curves = [Curve { name: "ours", ascending: &ours }, Curve { name: "the floor", ascending: &floor }];
        let svg = distribution("A title", &curves);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<polyline").count(), 2);
        for word in ["A title", "ours", "the floor", "milliseconds", "share of runs", "prefers-color-scheme: dark"] {
            assert!(svg.contains(word), "{word}");
        }
        assert_eq!(svg.matches('<').count(), svg.matches('>').count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_plot_without_samples_is_an_empty_plot() {
        let svg = distribution("Nothing", &[Curve { name: "none", ascending: &[] }]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
