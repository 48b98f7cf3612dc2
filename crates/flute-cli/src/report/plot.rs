//! Perplexity against bits a weight, drawn: one line a family, the dense model as a level.
//!
//! The scale of perplexity is logarithmic and ends at 2.6 times the dense model's, beyond which no model is of use;
//! lines to what lies above leave the plot at its upper edge, and the table has the figures. Only SVG is drawn: its
//! text is set by whoever shows it, so that no font is needed here.

use super::Compared;
use anyhow::{Context, anyhow};
use flute_burn::compare::{Measured, Series};
use plotters::prelude::*;

const SIZE: (u32, u32) = (760, 480);
/// Perplexities up to so many times the dense model's are shown.
const TOP: f64 = 2.6;
/// The plot of one model, as SVG.
pub(super) fn draw(compared: &Compared) -> anyhow::Result<String> {
    let dense = compared.dense().context("the dense model was not measured")?;
    let shown: Vec<&Measured> =
        compared.ways.iter().filter(|way| way.series != Series::Dense).collect();
    let bits = shown.iter().map(|way| way.bits_per_weight);
    let (low, high) = bits.fold((f64::INFINITY, 0.0f64), |(l, h), b| (l.min(b), h.max(b)));
    let most = shown.iter().map(|way| way.perplexity).fold(dense, f64::max);
    let least = shown.iter().map(|way| way.perplexity).fold(dense, f64::min);
    let top = (most * 1.05).min(dense * TOP);
    let bottom = least * 0.96;
    let scale = (bottom..top).log_scale().with_key_points(ticks(bottom, top));

    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("the plot was not drawn: {error}");
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&compared.model, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(low - 0.1..high + 0.1, scale)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("bits a weight: codes, scales and tables")
        .y_desc("perplexity")
        .x_label_formatter(&|bits| format!("{bits:.1}"))
        .y_label_formatter(&|perplexity| format!("{perplexity:.0}"))
        .axis_desc_style(("sans-serif", 14))
        .label_style(("sans-serif", 12))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .y_labels(20)
        .draw()
        .map_err(failed)?;
    let level = [(low - 0.1, dense), (high + 0.1, dense)];
    chart
        .draw_series(LineSeries::new(level, BLACK.mix(0.5)))
        .map_err(failed)?
        .label(format!("dense, {dense:.2}"))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.mix(0.5)));
    for series in families(&shown) {
        let colour = colour(series);
        let mut points: Vec<(f64, f64)> = shown
            .iter()
            .filter(|way| way.series == series)
            .map(|way| (way.bits_per_weight, way.perplexity))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let marks = points.iter().filter(|(_, perplexity)| *perplexity <= top);
        let marks: Vec<_> = marks.map(|point| Circle::new(*point, 3, colour.filled())).collect();
        chart
            .draw_series(LineSeries::new(cut(&points, top), colour.stroke_width(2)))
            .map_err(failed)?
            .label(series.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(marks).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(failed)?;
    area.present().map_err(failed)?;
    drop(chart);
    drop(area);
    Ok(svg)
}

/// Okabe and Ito's colours, which those who see few colours tell apart.
fn colour(series: Series) -> RGBColor {
    match series {
        Series::Int => RGBColor(230, 159, 0),
        Series::Fp => RGBColor(204, 121, 167),
        Series::Nf => RGBColor(86, 180, 233),
        Series::NfWide => RGBColor(150, 150, 150),
        Series::Learned => RGBColor(0, 114, 178),
        Series::HiggsLine => RGBColor(0, 158, 115),
        Series::HiggsPlane => RGBColor(213, 94, 0),
        _ => BLACK,
    }
}

/// Round numbers from `bottom` to `top`, about evenly spread where numbers are logarithms.
fn ticks(bottom: f64, top: f64) -> Vec<f64> {
    const STEPS: [f64; 12] = [1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];
    let decades = (0..9).map(|power| 10f64.powi(power));
    let ticks = decades.flat_map(|decade| STEPS.map(|step| (step * decade).round()));
    let mut ticks: Vec<f64> = ticks.filter(|tick| (bottom..=top).contains(tick)).collect();
    // Rounding makes some of the first decade the same.
    ticks.dedup();
    ticks
}

/// The families, in the order in which they were measured.
fn families(ways: &[&Measured]) -> Vec<Series> {
    let mut families = vec![];
    for way in ways {
        if !families.contains(&way.series) {
            families.push(way.series);
        }
    }
    families
}

/// The line through `points` below `top`, and from there to the edge towards the points above it.
fn cut(points: &[(f64, f64)], top: f64) -> Vec<(f64, f64)> {
    let mut line = vec![];
    for (index, (bits, perplexity)) in points.iter().enumerate() {
        if *perplexity <= top {
            line.push((*bits, *perplexity));
        } else if let Some((other, below)) = points.get(index + 1).filter(|next| next.1 <= top) {
            let share = (top.ln() - below.ln()) / (perplexity.ln() - below.ln());
            line.push((other + (bits - other) * share, top));
        }
    }
    line
}
