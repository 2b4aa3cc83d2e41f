// Draws every chart twice: to be used on the screen, and still, in the width of a printed page.
const WIDTH_ON_PAPER = 690;
for (const place of document.querySelectorAll('.chart')) {
  const figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const options = {responsive: true, displaylogo: false, displayModeBar: false};
  const drawn = Plotly.newPlot(place, figure.data, figure.layout, options);
  const still = place.parentElement.querySelector('.still');
  const redraw = () => {
    // Its own copies: Plotly fills in what it is given.
    const data = JSON.parse(JSON.stringify(place.data));
    const layout = JSON.parse(JSON.stringify(place.layout));
    // Buttons cannot be pressed on paper; the one that is pressed becomes the title.
    const menu = (layout.updatemenus || [])[0];
    if (menu) layout.title = {text: menu.buttons[menu.active].label, x: 0.01, font: {size: 13}};
    delete layout.updatemenus;
    layout.autosize = false;
    layout.width = WIDTH_ON_PAPER;
    return Plotly.toImage({data, layout}, {format: 'svg', width: WIDTH_ON_PAPER,
      height: layout.height}).then(source => { still.src = source; });
  };
  drawn.then(redraw).then(() => {
    place.on('plotly_restyle', redraw);
    document.body.dataset.charts = Number(document.body.dataset.charts || 0) + 1;
  });
}
