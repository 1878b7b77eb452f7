const root = element.querySelector('.ace-answers');
let key = null;
let columns = [];

function make(tag, className, parent) {
    const node = document.createElement(tag);
    node.className = className;
    parent.append(node);
    return node;
}

function write(node, text) {
    if (node.textContent !== text) node.textContent = text;
}

// Strength of the shade grows with the distance from 0.5 and is full at the class means.
function shade(span, coordinate) {
    if (coordinate === null || coordinate === undefined) {
        span.style.removeProperty('--strength');
        span.removeAttribute('data-side');
        span.removeAttribute('title');
        return;
    }
    const strength = Math.min(1, Math.abs(coordinate - 0.5) * 2);
    span.style.setProperty('--strength', strength.toFixed(2));
    span.dataset.side = coordinate < 0.5 ? 'low' : 'high';
    span.title = 'c = ' + coordinate.toFixed(2);
}

class Column {
    constructor(data, block) {
        this.box = make('section', 'ace-column', root);
        this.box.dataset.method = data.method;
        this.box.setAttribute('aria-label', data.label);
        const head = make('header', 'ace-column-head', this.box);
        const title = make('h3', 'ace-column-title', head);
        make('span', 'ace-glyph', title).textContent = data.glyph;
        title.firstChild.setAttribute('aria-hidden', 'true');
        make('span', '', title).textContent = data.label;
        this.badge = make('span', 'ace-badge', head);
        this.stamp = make('p', 'ace-stamp', this.box);
        this.text = make('div', 'ace-text', this.box);
        this.text.dir = 'auto';
        this.text.setAttribute('role', 'group');
        this.foot = make('footer', 'ace-column-foot', this.box);
        this.note = make('span', 'ace-note', this.foot);
        this.readout = make('output', 'ace-readout', this.foot);
        this.spans = [];
        this.values = [];
        this.block = block;
        this.text.addEventListener('keydown', (event) => this.move(event));
        this.text.addEventListener('focusin', (event) => this.read(event.target));
        this.text.addEventListener('mouseover', (event) => this.read(event.target));
        this.text.addEventListener('mouseleave', () => write(this.readout, ''));
        this.text.addEventListener('focusout', () => write(this.readout, ''));
    }

    update(data, block) {
        this.block = block;
        write(this.stamp, data.stamp);
        write(this.badge, data.badge);
        this.badge.dataset.verdict = data.badge;
        write(this.note, data.note);
        const atEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 24;
        while (this.spans.length > data.tokens.length) {
            this.spans.pop().remove();
            this.values.pop();
        }
        data.tokens.forEach(([text, coordinate], index) => {
            let span = this.spans[index];
            if (!span) {
                span = make('span', 'ace-token', this.text);
                span.tabIndex = index === 0 ? 0 : -1;
                this.spans.push(span);
                this.values.push(undefined);
            }
            write(span, text);
            if (this.values[index] !== coordinate) {
                this.values[index] = coordinate;
                shade(span, coordinate);
            }
        });
        if (atEnd) this.text.scrollTop = this.text.scrollHeight;
    }

    // One tab stop a column; arrow keys walk along the tokens.
    move(event) {
        const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
        if (!(event.key in steps)) return;
        const here = this.spans.indexOf(event.target);
        const there = Math.max(0, Math.min(this.spans.length - 1, here + steps[event.key]));
        const target = this.spans[there];
        if (here < 0 || !target) return;
        event.preventDefault();
        this.spans[here].tabIndex = -1;
        target.tabIndex = 0;
        target.focus();
    }

    read(target) {
        const index = this.spans.indexOf(target);
        if (index < 0) return;
        const value = this.values[index];
        const token = JSON.stringify(target.textContent).slice(1, -1);
        const number = value === null || value === undefined ? 'not read yet' : 'c = ' + value.toFixed(2);
        write(this.readout, '“' + token + '” ' + number + ' at block ' + this.block);
    }
}

function draw() {
    const value = props.value;
    if (!value || !value.columns) return;
    if (value.key !== key || value.columns.length !== columns.length) {
        key = value.key;
        root.replaceChildren();
        columns = value.columns.map((data) => new Column(data, value.block));
        root.style.setProperty('--columns', columns.length);
    }
    root.dataset.live = String(value.live);
    root.setAttribute('aria-busy', String(value.live));
    columns.forEach((column, index) => column.update(value.columns[index], value.block));
}

watch('value', draw);
draw();
