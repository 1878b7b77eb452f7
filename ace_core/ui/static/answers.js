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

// The shade grows with the distance from 0.5 and is full at the class means.
function shade(span, coordinate) {
    if (coordinate === null) {
        span.removeAttribute('style');
        span.removeAttribute('data-side');
        span.removeAttribute('title');
        return;
    }
    span.style.setProperty('--strength', Math.min(1, Math.abs(coordinate - 0.5) * 2).toFixed(2));
    span.dataset.side = coordinate < 0.5 ? 'low' : 'high';
    span.title = 'c = ' + coordinate.toFixed(2);
}

class Column {
    constructor(data) {
        this.box = make('section', 'ace-column', root);
        this.box.dataset.method = data.method;
        this.box.setAttribute('aria-label', element.closest('#pinned') ? `${data.label}, pinned` : data.label);
        const head = make('header', 'ace-column-head', this.box);
        const title = make('h3', 'ace-column-title', head);
        const glyph = make('span', 'ace-glyph', title);
        write(glyph, data.glyph);
        glyph.setAttribute('aria-hidden', 'true');
        write(make('span', '', title), data.label);
        this.badge = make('span', 'ace-badge', head);
        this.stamp = make('p', 'ace-stamp', this.box);
        this.text = make('div', 'ace-text', this.box);
        this.text.dir = 'auto';
        this.text.setAttribute('role', 'group');
        this.text.setAttribute('aria-label', 'Answer, arrow keys read token by token');
        const foot = make('footer', 'ace-column-foot', this.box);
        this.note = make('span', 'ace-note', foot);
        this.readout = make('output', 'ace-readout', foot);
        this.spans = [];
        this.values = [];
        this.follow = true;
        // Follows the text until somebody scrolls up, and again once they are back at the end.
        this.text.addEventListener('scroll', () => {
            const left = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight;
            this.follow = left < 24;
        });
        this.text.addEventListener('keydown', (event) => this.move(event));
        for (const kind of ['focusin', 'mouseover']) {
            this.text.addEventListener(kind, (event) => this.read(event.target));
        }
        for (const kind of ['focusout', 'mouseleave']) {
            this.text.addEventListener(kind, () => write(this.readout, ''));
        }
    }

    update(data, block) {
        this.block = block;
        write(this.stamp, data.stamp);
        write(this.badge, data.badge);
        this.badge.dataset.verdict = data.badge;
        write(this.note, data.note);
        while (this.spans.length > data.tokens.length) {
            this.spans.pop().remove();
            this.values.pop();
        }
        data.tokens.forEach(([text, coordinate], index) => {
            if (index === this.spans.length) {
                const span = make('span', 'ace-token', this.text);
                span.tabIndex = index === 0 ? 0 : -1;
                this.spans.push(span);
                this.values.push(null);
            }
            write(this.spans[index], text);
            if (this.values[index] !== coordinate) {
                this.values[index] = coordinate;
                shade(this.spans[index], coordinate);
            }
        });
    }

    // One tab stop a column; arrow keys walk along the tokens.
    move(event) {
        const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
        if (!(event.key in steps)) return;
        const here = this.spans.indexOf(event.target);
        const target = this.spans[Math.max(0, Math.min(this.spans.length - 1, here + steps[event.key]))];
        if (here < 0) return;
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
        const number = value === null ? 'not read yet' : 'c = ' + value.toFixed(2) + ' at block ' + this.block;
        write(this.readout, '“' + token + '” ' + number);
    }
}

function draw() {
    const value = props.value ? JSON.parse(props.value) : null;
    if (!value) return;
    if (value.key !== key || value.columns.length !== columns.length) {
        key = value.key;
        root.replaceChildren();
        columns = value.columns.map((data) => new Column(data));
    }
    root.dataset.live = String(value.live);
    root.setAttribute('aria-busy', String(value.live));
    columns.forEach((column, index) => column.update(value.columns[index], value.block));
    if (!value.live) return;
    // All reads before all writes, or every column would lay out the page again.
    const ends = columns.map((column) => (column.follow ? column.text.scrollHeight : null));
    ends.forEach((end, index) => {
        if (end !== null) columns[index].text.scrollTop = end;
    });
}

let waiting = false;
watch('value', () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
        waiting = false;
        draw();
    });
});
draw();
