// One input of sequences through `vnp run`. Settings of vnp come as task.ext.args (--embeddings,
// --compat, --esm2 NAME, ...) or as VNP_* variables of `env` in a configuration.
process VNP_RUN {
    tag "${meta.id}"
    label 'process_gpu'

    container "${task.accelerator ? params.vnp_container_cuda : params.vnp_container_cpu}"

    input:
    tuple val(meta), path(fasta, stageAs: 'input/*')
    path models // a models folder (vnp models list), or [] for the models that vnp brings along

    output:
    tuple val(meta), path("${prefix}.vnp/sequences.tsv"), emit: sequences
    tuple val(meta), path("${prefix}.vnp/chunks.tsv"), emit: chunks, optional: true
    tuple val(meta), path("${prefix}.vnp/virus.fasta.gz"), emit: virus, optional: true
    tuple val(meta), path("${prefix}.vnp/shards"), emit: shards
    tuple val(meta), path("${prefix}.vnp/run.json"), emit: run
    tuple val("${task.process}"), val('vnp'), eval("vnp --version | sed 's/^vnp //'"), topic: versions, emit: versions_vnp

    when:
    task.ext.when == null || task.ext.when

    script:
    prefix = task.ext.prefix ?: "${meta.id}"
    def args = task.ext.args ?: ''
    def device = task.accelerator ? 'cuda:0' : 'cpu'
    // A container's limit is no affinity: what vnp would count are the machine's cores.
    def packers = task.cpus > 1 ? task.cpus - 1 : 1
    // On the CPU bits are equal for threads that are a power of two.
    def threads = Integer.highestOneBit(task.cpus)
    def models_dir = models ? "export VNP_MODELS_DIR=\"\$PWD/${models}\"" : ''
    """
    # A runtime folder of the host is none of the container's.
    unset XDG_RUNTIME_DIR
    export VNP_PACKERS=${packers} VNP_THREADS=${threads}
    ${models_dir}
    vnp run input/* --out "${prefix}.vnp" --device ${device} --quiet ${args}
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p "${prefix}.vnp/shards"
    cd "${prefix}.vnp"
    echo seq_name length prediction virus_score max_chunk_score longest_virus_run n_chunks n_chunks_scored n_virus_chunks n_frames status note | tr ' ' '\\t' > sequences.tsv
    echo seq_name chunk start end prediction virus_score best_frame n_frames status | tr ' ' '\\t' > chunks.tsv
    gzip -n < /dev/null > virus.fasta.gz
    echo '{"state": "finished", "records": 0}' > run.json
    """
}
