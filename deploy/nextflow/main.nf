#!/usr/bin/env nextflow
// Viral sequences of many files, one task each.
//
//   nextflow run deploy/nextflow --input '/data/genomes/*.fa.gz' --outdir results -profile docker

include { VNP_RUN } from './vnp.nf'

workflow {
    main:
    sequences = channel
        .fromPath(params.input, checkIfExists: true)
        .map { found -> [[id: found.getBaseName(found.extension == 'gz' ? 2 : 1)], found] }

    VNP_RUN(sequences, params.models ? file(params.models, checkIfExists: true) : [])

    VNP_RUN.out.sequences
        .map { _meta, table -> table }
        .collectFile(name: 'sequences.tsv', keepHeader: true, storeDir: params.outdir)

    channel
        .topic('versions')
        .unique()
        .map { name, tool, version -> "${name}:\n    ${tool}: ${version}" }
        .collectFile(name: 'versions.yml', newLine: true, storeDir: params.outdir)
}
