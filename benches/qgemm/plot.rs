//! Times over rows, drawn as SVG: both scales are logarithmic, and text is set by whoever shows it.

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (860, 520);

/// One line of a plot: rows and microseconds.
pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

/// Draws `lines`; those without points are left out.
///
/// # Errors
/// If there is nothing to draw, or the drawing fails.
pub(crate) fn draw(title: &str, lines: &[Line<'_>]) -> Result<String> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let most = all().map(|p| p.0).reduce(f64::max).context("nothing was measured")?;
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|p| p.1).fold(0.0, f64::max);
    let powers = (0..24).map(|i| f64::from(1 << i)).filter(|p| *p <= most).collect::<Vec<_>>();
    let (bottom, top) = (low / 1.2, high * 1.2);
    let decades = (-1..7).flat_map(|d| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(d)));
    let decades = decades.filter(|us| (bottom..=top).contains(us));

    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("the plot was not drawn: {error}");
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (1.0..most).log_scale().with_key_points(powers),
            (bottom..top).log_scale().with_key_points(decades.collect()),
        )
        .map_err(failed)?;
    chart
        .configure_mesh()
        .x_desc("rows of activations")
        .y_desc("microseconds")
        .x_label_formatter(&|m| format!("{m:.0}"))
        .y_label_formatter(&|us| format!("{us}"))
        .axis_desc_style(("sans-serif", 14))
        .label_style(("sans-serif", 12))
        .bold_line_style(BLACK.mix(0.15))
        .light_line_style(TRANSPARENT)
        .x_labels(24)
        .y_labels(24)
        .draw()
        .map_err(failed)?;
    // Okabe and Ito's colours, which those who see few colours tell apart.
    let colours = [
        RGBColor(150, 150, 150),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(86, 180, 233),
        RGBColor(0, 114, 178),
    ];
    let coloured = lines.iter().zip(colours.into_iter().cycle());
    for (line, colour) in coloured.filter(|(line, _)| !line.points.is_empty()) {
        let style = colour.stroke_width(2);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))
            .map_err(failed)?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        let marks = line.points.iter().map(|point| Circle::new(*point, 2, colour.filled()));
        chart.draw_series(marks).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
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
